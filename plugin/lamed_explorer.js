// LaMed plugin for Orthanc: state and button on the study page of Orthanc Explorer.
// Copyright (C) 2026 the LaMed Node authors
// SPDX-License-Identifier: AGPL-3.0-or-later
(function () {
  'use strict';

  var POLL_MS = 3000;
  var DRAFT = 'AI DRAFT - not for diagnostic use. ' +
    'A physician must read the images and verify every statement and measurement.';
  var timer = null;

  // All text from the server goes through .text(): nothing of it is read as HTML.
  function item(text, theme) {
    var made = $('<li>').css('white-space', 'normal').text(text);
    return theme ? made.attr('data-theme', theme) : made;
  }

  function button(uuid) {
    var link = $('<a>').attr({ href: '#', id: 'lamed-send' }).text('Send to LaMed');
    link.click(function (event) {
      event.preventDefault();
      link.text('Asking...');
      $.ajax({ url: '../lamed/studies/' + uuid + '/send', type: 'POST', data: '{}' })
        .done(function () { refresh(uuid); })
        .fail(function (answer) { show(uuid, null, sentence(answer)); });
    });
    return $('<li>').attr('data-icon', 'forward').append(link);
  }

  function sentence(answer) {
    try {
      return JSON.parse(answer.responseText).error;
    } catch (error) {
      return 'Orthanc answered with status ' + answer.status;
    }
  }

  function show(uuid, study, problem) {
    var list = $('<ul>').attr({
      'id': 'lamed', 'data-role': 'listview', 'data-inset': 'true',
      'data-theme': 'd', 'data-divider-theme': 'c'
    });
    list.append($('<li>').attr('data-role', 'list-divider').text('LaMed'));
    if (problem) {
      list.append(item(problem, 'e').attr('id', 'lamed-problem'));
    }
    if (study) {
      list.append(item('LaMed: ' + (study.state || 'not sent') + (study.ended ? '' : ' ...'))
        .attr('id', 'lamed-state'));
      if (study.reason) {
        list.append(item(study.reason).css('font-weight', 'normal').attr('id', 'lamed-reason'));
      }
      if (study.drafts > 0) {
        list.append(item(DRAFT, 'e').attr('id', 'lamed-draft'));
      }
    }
    if (!study || study.series > 0) {
      list.append(button(uuid));
    }
    $('#lamed').remove();
    if (!study || study.series > 0 || study.drafts > 0 || study.state) {
      list.insertAfter('#study-info').listview();
    }
  }

  function refresh(uuid) {
    clearTimeout(timer);
    $.ajax({ url: '../lamed/studies/' + uuid, dataType: 'json', cache: false })
      .done(function (study) {
        if (!$.mobile.pageData || $.mobile.pageData.uuid !== uuid) {
          return;  // another study is shown by now
        }
        show(uuid, study, '');
        timer = setTimeout(function () { refresh(uuid); }, POLL_MS);
      })
      .fail(function (answer) {
        show(uuid, null, sentence(answer));
      });
  }

  $('#study').live('pagebeforeshow', function () {
    $('#lamed').remove();
    if ($.mobile.pageData) {
      refresh($.mobile.pageData.uuid);
    }
  });

  $('#study').live('pagehide', function () {
    clearTimeout(timer);
  });
}());
