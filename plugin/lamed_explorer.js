// LaMed plugin for Orthanc: state, drafts and button on the study page of Orthanc Explorer.
// Copyright (C) 2026 the LaMed Node authors
// SPDX-License-Identifier: AGPL-3.0-or-later
(function () {
  'use strict';

  var POLL_MS = 3000;
  var DRAFT = 'AI DRAFT - not for diagnostic use. ' +
    'A physician must read the images and verify every statement and measurement.';
  var NO_DRAFT = 'The node has finished, but no draft is here: it was deleted, ' +
    'or Orthanc is not among the node\'s destinations.';
  var MEANING = {
    '': 'This study was not sent to the node.',
    'waiting': 'It cannot go on now, and is tried again by itself.',
    'sending': 'Orthanc is sending the images to the node.',
    'sent': 'The node has the images.',
    'receiving': 'The node has images and will take the study as complete soon.',
    'queued': 'The study is complete and waits for its turn.',
    'processing': 'The model is reading the study.',
    'delivering': 'The drafts are on their way back.',
    'done': 'The drafts are among the series of this study.',
    'rejected': 'The node does not read this study.',
    'failed': 'The node could not finish; its QA pages say more.',
    'erased': 'The node was told to erase the study for good.'
  };
  var shown = null;  // Orthanc's id of the study whose page is open
  var drawn = '';    // what stands there now
  var drafts = null; // how many drafts the page lists; null: not known yet
  var timer = null;

  // All text from the server goes through .text(): nothing of it is read as HTML.
  function line(text, bold) {
    return $('<p>').css({ 'white-space': 'normal', 'overflow-wrap': 'anywhere',
      'font-size': bold ? '14px' : '12px', 'margin': bold ? 0 : '4px 0 0' })
      .css('font-weight', bold ? 'bold' : 'normal').text(text);
  }

  function item(id, lines, theme) {
    var made = $('<li>').attr('id', id);
    $.each(lines, function () { made.append(this); });
    return theme ? made.attr('data-theme', theme) : made;
  }

  function button(uuid, again) {
    var link = $('<a>').attr({ href: '#', id: 'lamed-send' })
      .text(again ? 'Send again to LaMed' : 'Send to LaMed');
    link.click(function (event) {
      event.preventDefault();
      link.text('Asking...');
      drawn = '';
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
      return answer.status ? 'Orthanc answered with status ' + answer.status
        : 'Orthanc does not answer';
    }
  }

  function state(study) {
    var lines = [line('LaMed: ' + (study.state || 'not sent'), true)];
    var finished = study.state === 'done' && study.drafts === 0;
    if (MEANING[study.state]) {
      lines.push(line(finished ? NO_DRAFT : MEANING[study.state]).attr('id', 'lamed-meaning'));
    }
    if (study.reason) {
      lines.push(line(study.reason).attr('id', 'lamed-reason'));
    }
    return item('lamed-state', lines, finished ? 'e' : '').attr('aria-live', 'polite');
  }

  function show(uuid, study, problem) {
    var ours = !study || study.series > 0 || study.drafts > 0 || study.state;
    var now = JSON.stringify([uuid, study, problem]);
    var list = $('<ul>').attr({
      'id': 'lamed', 'data-role': 'listview', 'data-inset': 'true',
      'data-theme': 'd', 'data-divider-theme': 'c'
    });
    if (shown !== uuid || drawn === now) {
      return;  // another study is shown by now, or nothing is new
    }
    drawn = now;
    $('#lamed').remove();
    if (!ours) {
      return;
    }
    list.append($('<li>').attr('data-role', 'list-divider').text('LaMed'));
    if (study && study.drafts > 0) {
      list.append(item('lamed-draft', [line(DRAFT, true)], 'e'));
    }
    if (problem) {
      list.append(item('lamed-problem', [line(problem, true)], 'e'));
    }
    if (study && (study.series > 0 || study.state)) {
      list.append(state(study));
    }
    if (!study || study.series > 0) {
      list.append(button(uuid, study && study.state));
    }
    list.insertAfter('#study-info').listview();
  }

  // The page lists the series that were there when it was opened: drafts come later.
  function list(study) {
    if (drafts !== null && drafts !== study.drafts && window.RefreshStudy) {
      window.RefreshStudy();
    }
    drafts = study.drafts;
  }

  function refresh(uuid) {
    clearTimeout(timer);
    $.ajax({ url: '../lamed/studies/' + uuid, dataType: 'json', cache: false })
      .done(function (study) {
        if (shown === uuid) {
          list(study);
          show(uuid, study, '');
        }
      })
      .fail(function (answer) {
        show(uuid, null, sentence(answer));
      })
      .always(function () {
        if (shown === uuid) {
          clearTimeout(timer);
          timer = setTimeout(function () { refresh(uuid); }, POLL_MS);
        }
      });
  }

  $('#study').live('pagebeforeshow', function () {
    $('#lamed').remove();
    drawn = '';
    drafts = null;
    shown = $.mobile.pageData ? $.mobile.pageData.uuid : null;
    if (shown) {
      refresh(shown);
    }
  });

  $('#study').live('pagehide', function () {
    shown = null;
    clearTimeout(timer);
  });
}());
