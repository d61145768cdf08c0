import hashlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from keeping import DAY, Node, Stopped, killed_at

from dicom_node.config import Config
from dicom_node.errors import BadInput, Unavailable
from dicom_node.jobs import Jobs, State
from dicom_node.ledger import deliveries, removals
from dicom_node.retention import leaving, resume, retention

OLD = datetime.now(UTC) + timedelta(days=31)
OLDER = datetime.now(UTC) + timedelta(days=400)


@pytest.fixture
def node(config: Config) -> Iterator[Node]:
    with Node(config) as made:
        yield made


def uids(going: list[retention.Going]) -> list[tuple[str, str]]:
    return [(each.what, each.study_uid) for each in going]


def test_delivered_images_leave_with_age_and_results_later(node: Node) -> None:
    job = node.delivered("1.2.1")
    assert node.sweep() == []
    (images,) = node.sweep(OLD)
    assert (images.what, images.files, images.why) == ("images", 2, "age")
    assert list(node.config.spool_dir.rglob("*.dcm")) == []
    assert {each.name for each in node.config.spool_dir.iterdir()} == {"incoming", "lock"}
    assert (node.config.results_dir / job / "draft.dcm").exists()
    (results,) = node.sweep(OLDER)
    assert (results.what, results.job_id, results.files) == ("results", job, 2)
    assert not (node.config.results_dir / job).exists()
    study, left = node.ledger.study("1.2.1"), node.ledger.job(job)
    assert study
    assert study.expired_at
    assert study.instance_count == 2
    assert left
    assert left.expired_at
    assert node.sweep(OLDER) == []
    assert node.ledger.verify() > 0


def test_what_left_is_told_with_counts_bytes_and_the_reason(node: Node) -> None:
    node.delivered("1.2.1")
    (images,) = node.sweep(OLD)
    told = [each for each in node.ledger.events() if each.kind.startswith("retention.")]
    assert [each.kind for each in told] == ["retention.expiring", "retention.expired"]
    for each in told:
        assert each.study_uid == "1.2.1"
        assert each.data | {"upto": 0} == {
            "what": "images",
            "files": 2,
            "bytes": images.bytes,
            "why": "age",
            "upto": 0,
        }


@pytest.mark.parametrize("state", ["pending", "failed", "held", "sent", "sent-unproven"])
def test_nothing_leaves_before_its_delivery_is_proven(node: Node, state: str) -> None:
    node.delivered("1.2.1", state=state)
    assert node.sweep(OLDER) == []
    going, kept = retention.plan(node.ledger, node.config, OLDER)
    assert (going, list(kept.values())) == ([], [1])
    node.deliveries_become("delivered")
    if state not in {"pending", "failed"}:  # those also keep the study from its end
        assert len(node.sweep(OLDER)) == 2


def test_what_is_stored_without_proof_may_leave_if_the_site_says_so(node: Node) -> None:
    node.delivered("1.2.1", state="sent-unproven")
    lax = replace(node.config, retain_unproven=False)
    assert len(node.sweep(OLDER, lax)) == 2


def test_what_is_still_to_be_read_stays(node: Node) -> None:
    node.receive("1.2.1")
    assert node.sweep(OLDER) == []
    job = node.enqueue("1.2.1")
    assert node.sweep(OLDER) == []
    assert Jobs(node.ledger).claim("w", 60)
    assert node.sweep(OLDER) == []
    Jobs(node.ledger).finish(job, "w", State.REJECTED, "no good")
    assert uids(node.sweep(OLDER)) == [("images", "1.2.1")]


def test_zero_days_keep_for_ever(node: Node) -> None:
    node.delivered("1.2.1")
    eternal = replace(node.config, retain_spool_days=0, retain_results_days=0)
    assert node.sweep(OLDER, eternal) == []


def test_too_many_bytes_make_the_oldest_leave_first_and_no_more_than_needed(node: Node) -> None:
    for number in range(4):
        node.delivered(f"1.2.{number}", at=datetime.now(UTC) - timedelta(days=9 - number))
    size = sum(each.stat().st_size for each in node.config.spool_dir.rglob("*.dcm")) / 4
    tight = replace(node.config, retain_spool_gb=2.5 * size / retention.GB)
    going = node.sweep(config=tight)
    assert uids(going) == [("images", "1.2.0"), ("images", "1.2.1")]
    assert {each.why for each in going} == {"size"}
    assert node.sweep(config=tight) == []


def test_room_is_not_made_of_what_must_stay(node: Node) -> None:
    node.delivered("1.2.1", at=datetime.now(UTC) - timedelta(days=9), state="pending")
    node.failed("1.2.2", at=datetime.now(UTC) - timedelta(days=8))
    node.delivered("1.2.3")
    tight = replace(node.config, retain_spool_gb=1e-9, retain_results_gb=1e-9)
    assert uids(node.sweep(config=tight)) == [("images", "1.2.3"), ("results", "1.2.3")]
    assert uids(node.sweep(OLD, tight)) == [("images", "1.2.2")]


def test_results_that_went_nowhere_leave_by_age_only(node: Node) -> None:
    node.delivered("1.2.1", destination="")
    tight = replace(node.config, retain_results_gb=1e-9)
    assert node.sweep(config=tight) == []
    assert uids(node.sweep(OLDER, tight)) == [("images", "1.2.1"), ("results", "1.2.1")]


def test_a_held_study_stays_until_it_is_let_go(node: Node) -> None:
    node.delivered("1.2.1")
    node.hold("1.2.1")
    assert node.sweep(OLDER) == []
    node.unhold("1.2.1")
    assert len(node.sweep(OLDER)) == 2
    kinds = [each.kind for each in node.ledger.events(study_uid="1.2.1")]
    assert [each for each in kinds if each.startswith("hold.")] == ["hold.added", "hold.removed"]


def test_a_hold_needs_a_reason_and_a_study_and_is_one(node: Node) -> None:
    node.receive("1.2.1")
    with pytest.raises(BadInput, match="needs a reason"):
        node.hold("1.2.1", " ")
    with pytest.raises(BadInput, match="no study is known as 9"):
        node.hold("9.9")
    node.hold("1.2.1")
    with pytest.raises(BadInput, match="held already"):
        node.hold("1.2.1")
    with pytest.raises(BadInput, match="is not held"):
        node.unhold("9.9")


def test_a_study_that_is_held_between_plan_and_removal_stays(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.delivered("1.2.1")
    made = retention.plan(node.ledger, node.config, OLDER)
    node.hold("1.2.1")
    monkeypatch.setattr(retention, "plan", lambda *_: made)
    assert node.sweep(OLDER) == []
    assert len(list(node.config.spool_dir.rglob("*.dcm"))) == 2


# Every step of a removal: before its files, in the midst of them, after them.
STEPS = ["begun", "first file", "files", "folder"]


@pytest.mark.parametrize("step", STEPS)
def test_a_crash_anywhere_leaves_what_the_next_start_finishes(
    node: Node, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = node.delivered("1.2.1")
    with monkeypatch.context() as patched:
        break_at(step, patched)
        with pytest.raises(Stopped):
            node.sweep(OLDER)
    assert (study := node.ledger.study("1.2.1"))
    assert study.state == "done"
    node.restart()
    assert list(node.config.spool_dir.rglob("*.dcm")) == []
    node.sweep(OLDER)
    assert not (node.config.results_dir / job).exists()
    kinds = [each.kind for each in node.ledger.events()]
    assert kinds.count("retention.expiring") == kinds.count("retention.expired") == 2
    assert "instance.recovered" not in kinds
    assert resume(node.ledger, node.config) == 0
    assert node.ledger.verify() == len(kinds)


@pytest.mark.parametrize("name", ["finish", "remove_files", "sync", "remove_folder"])
def test_a_process_that_is_killed_leaves_what_the_next_one_finishes(node: Node, name: str) -> None:
    node.delivered("1.2.1")
    head = node.ledger.head()
    killed_at(
        f"dicom_node.retention.leaving.{name}", node, "retention.sweep(node.ledger, config, OLDER)"
    )
    node.restart()
    node.sweep(OLDER)
    assert list(node.config.spool_dir.rglob("*.dcm")) == []
    assert list(node.config.results_dir.iterdir()) == []
    kinds = [each.kind for each in node.ledger.events()]
    assert kinds.count("retention.expiring") == kinds.count("retention.expired") == 2
    assert "instance.recovered" not in kinds
    assert node.ledger.verify(head) == len(kinds)


def break_at(step: str, patched: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise Stopped

    real = Path.unlink
    removed: list[Path] = []

    def unlink(path: Path, *, missing_ok: bool = False) -> None:
        if removed:
            raise Stopped
        removed.append(path)
        real(path, missing_ok=missing_ok)

    if step == "first file":
        patched.setattr(Path, "unlink", unlink)
    elif step == "begun":
        patched.setattr(leaving, "finish", stop)
    else:
        name = {"files": "sync", "folder": "remove_folder"}[step]
        patched.setattr(leaving, name, stop)


def test_an_expired_study_that_is_sent_again_is_the_same_question(node: Node) -> None:
    job = node.delivered("1.2.1")
    node.sweep(OLD)
    node.receive("1.2.1")
    assert (study := node.ledger.study("1.2.1"))
    assert study.instance_count == 2
    assert len(node.ledger.instances("1.2.1")) == 2
    assert node.enqueue("1.2.1") == job
    assert [each.state for each in node.ledger.jobs("1.2.1")] == [State.DONE]


def test_a_study_whose_results_expired_is_read_anew_under_the_same_key(node: Node) -> None:
    job = node.delivered("1.2.1")
    node.sweep(OLDER)
    node.receive("1.2.1")
    assert node.enqueue("1.2.1") == job
    assert node.read("1.2.1", job) == job
    assert (left := node.ledger.job(job))
    assert left.expired_at is None
    assert len(node.ledger.results(job)) == 1


def test_what_has_expired_is_not_sent_again(node: Node) -> None:
    job = node.delivered("1.2.1")
    (sent,) = node.ledger.deliveries(job)
    node.sweep(OLDER)
    with pytest.raises(BadInput, match="the results of delivery 1 are gone since"):
        deliveries.resend(node.ledger, [sent.id], by="test")
    assert [each.state for each in node.ledger.deliveries(job)] == ["delivered"]


def test_images_that_come_while_others_leave_stay(node: Node) -> None:
    node.delivered("1.2.1")
    with node.ledger.transaction() as transaction:
        removal = removals.begin(transaction, "images", "1.2.1")
    node.receive("1.2.1", numbers=(7,))
    leaving.finish(node.ledger, node.config, removal)
    (kept,) = node.ledger.instances("1.2.1")
    assert kept.sop_uid == "1.2.1.1.7"
    assert hashlib.sha256(kept.path.read_bytes()).hexdigest() == kept.sha256


def test_removal_waits_for_a_moment_in_which_nothing_is_stored(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaving, "PATIENCE_S", 0.0)
    node.delivered("1.2.1")
    spool, busy = node.config.spool_dir, "being received all the time"
    with node.storing(), pytest.raises(Unavailable, match=busy), leaving.quiet(spool, 0.1):
        pass
    one, other = leaving.alone(node.config), leaving.alone(node.config)
    with one, pytest.raises(Unavailable, match="another process"), other:
        pass
    with leaving.quiet(spool):
        pass


def test_the_loop_finishes_what_was_begun_and_survives_what_goes_wrong(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.delivered("1.2.1", at=datetime.now(UTC) - 40 * DAY)
    monkeypatch.setattr(retention, "RETRY_S", 0.01)
    real, stop, seen = retention.sweep, threading.Event(), []

    def sweep(*words: Any) -> list[retention.Going]:
        seen.append(1)
        if len(seen) == 1:
            raise OSError("a disk that hiccups")
        stop.set()
        return real(*words)

    monkeypatch.setattr(retention, "sweep", sweep)
    retention.run(node.ledger, node.config, stop)
    assert len(seen) == 2
    assert list(node.config.spool_dir.rglob("*.dcm")) == []


def test_what_expired_is_not_what_a_crash_left_half_stored(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.delivered("1.2.1")
    first = node.ledger.instances("1.2.1")[0]
    content = first.path.read_bytes()
    node.sweep(OLD)
    monkeypatch.chdir(tmp_path)
    (node.config.spool_dir / "incoming" / f"{first.sha256}.a.partial").write_bytes(content)
    node.restart()
    assert not (tmp_path / "expired").exists()
    assert list((node.config.spool_dir / "incoming").iterdir()) == []


def test_files_that_are_gone_already_do_not_stop_it(node: Node) -> None:
    node.delivered("1.2.1")
    next(node.config.spool_dir.rglob("*.dcm")).unlink()
    assert uids(node.sweep(OLD)) == [("images", "1.2.1")]
    assert not (node.config.spool_dir / "1.2.1").exists()
