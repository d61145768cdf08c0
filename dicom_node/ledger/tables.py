"""The tables of the ledger and the triggers that keep its events append-only.

Knows SQLAlchemy's schema language. Times are UTC, ISO 8601 text with microseconds, so that they
sort as text and read the same in any tool. `create` also brings a ledger of an earlier version to
the tables of this one: a column that it lacks has a default for the rows that are there.
"""

from sqlalchemy import (
    Boolean,
    Column,
    Connection,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    inspect,
    text,
)
from sqlalchemy.schema import CreateColumn

METADATA = MetaData()

studies = Table(
    "studies",
    METADATA,
    Column("study_uid", String, primary_key=True),
    Column("state", String, nullable=False),
    Column("reason", String, nullable=False, default=""),
    Column("patient_id", String, nullable=False),
    Column("patient_name", String, nullable=False),
    Column("accession_number", String, nullable=False),
    Column("study_date", String, nullable=False),
    Column("study_description", String, nullable=False),
    Column("complete_requested", Boolean, nullable=False, default=False),
    Column("opened_at", String, nullable=False),  # when the present reception began
    Column("arrivals", Integer, nullable=False),  # instances ever recorded
    Column("job_id", String),  # the job that speaks for the study; None: there was none yet
    Column("first_at", String, nullable=False),
    Column("last_at", String, nullable=False),
    Column("expired_at", String),  # when images of it were last removed; None: never
    Index("studies_by_state", "state", "last_at"),
    Index("studies_by_time", "last_at"),
)

instances = Table(
    "instances",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("study_uid", ForeignKey("studies.study_uid"), nullable=False),
    Column("series_uid", String, nullable=False),
    Column("sop_uid", String, nullable=False),
    Column("sop_class_uid", String, nullable=False),
    Column("transfer_syntax_uid", String, nullable=False),
    Column("modality", String, nullable=False),
    Column("path", String, nullable=False, unique=True),
    Column("sha256", String, nullable=False),
    Column("size", Integer, nullable=False),
    Column("received_at", String, nullable=False),
    Column("superseded", Boolean, nullable=False, default=False),
    Column("expired_at", String),  # when its file was removed; None: it is there
    Index("instances_by_uid", "study_uid", "sop_uid"),
    Index("instances_by_sop", "sop_uid"),
)

jobs = Table(
    "jobs",
    METADATA,
    Column("id", String, primary_key=True),
    Column("study_uid", ForeignKey("studies.study_uid"), nullable=False),
    Column("protocol", String, nullable=False),
    Column("state", String, nullable=False),
    Column("reason", String, nullable=False, default=""),
    Column("attempts", Integer, nullable=False, default=0),
    Column("worker", String, nullable=False, default=""),
    Column("lease_until", String),  # None: nobody holds it
    Column("created_at", String, nullable=False),
    Column("started_at", String),
    Column("finished_at", String),
    Column("series", String, nullable=False),  # JSON: chosen and skipped series with reasons
    Column("sop_uids", String, nullable=False),  # JSON
    Column("summary", String, nullable=False, default="{}"),  # JSON
    Column("expired_at", String),  # when its results were removed; None: they are there
    Column("priority", String, nullable=False, server_default="normal"),  # urgent | off-peak
    Column("due_at", String, nullable=False, server_default=""),  # who is due earlier is next
    Column("not_before", String),  # None: at once
    Column("window", String, nullable=False, server_default=""),  # HH:MM-HH:MM; empty: always
    Column("rule", String, nullable=False, server_default=""),  # of the site; empty: none
    Column("destinations", String, nullable=False, server_default="[]"),  # JSON; none: all
    Column("lead", String, nullable=False, server_default=""),  # the first job of its round
    Column("caveat", String, nullable=False, server_default=""),  # of its images; empty: none
    Index("jobs_by_state", "state", "created_at"),
    Index("jobs_by_due", "state", "due_at"),
    Index("jobs_by_study", "study_uid"),
)

results = Table(
    "results",
    METADATA,
    Column("sop_uid", String, primary_key=True),
    Column("job_id", ForeignKey("jobs.id"), nullable=False, index=True),
    Column("position", Integer, nullable=False),  # the order in which they are to be sent
    Column("label", String, nullable=False),
    Column("sop_class_uid", String, nullable=False),
    Column("series_uid", String, nullable=False),
    Column("path", String, nullable=False),
    Column("sha256", String, nullable=False),
    Column("held", String, nullable=False, server_default=""),  # why it is not sent; empty: it is
    Index("results_by_series", "series_uid"),
)

deliveries = Table(
    "deliveries",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("job_id", ForeignKey("jobs.id"), nullable=False),
    Column("study_uid", String, nullable=False),
    Column("destination", String, nullable=False),
    Column("state", String, nullable=False),
    Column("attempts", Integer, nullable=False, default=0),
    Column("next_at", String, nullable=False),
    Column("detail", String, nullable=False, default=""),
    Column("labels", String, nullable=False, server_default="[]"),  # JSON: what it gets
    Column("transaction_uid", String),  # of the commitment that was asked for; None: none was
    Column("stored_at", String),  # when the peer had stored all of it; None: not yet
    UniqueConstraint("job_id", "destination"),
    Index("deliveries_by_state", "state", "next_at"),
)

reviews = Table(
    "reviews",
    METADATA,
    Column("instance_id", ForeignKey("instances.id"), primary_key=True),  # what came back
    Column("study_uid", String, nullable=False),
    Column("state", String, nullable=False),  # waiting -> linked | unrelated | unread
    Column("job_id", String),  # whose draft it answers; None: nobody's
    Column("draft_uid", String),  # the object of ours that it answers
    Column("link", String, nullable=False, default=""),  # predecessor | evidence | study
    Column("detail", String, nullable=False, default="{}"),  # JSON: what stands in it
    Index("reviews_by_state", "state"),
    Index("reviews_by_study", "study_uid"),
)

events = Table(
    "events",
    METADATA,
    Column("seq", Integer, primary_key=True),
    Column("at", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("study_uid", String, index=True),
    Column("job_id", String, index=True),
    Column("data", String, nullable=False),  # canonical JSON
    Column("previous", String, nullable=False),
    Column("digest", String, nullable=False),
    Column("salt", String),  # opens the commitment; empty: what was said is erased
    Column("commitment", String),  # of study and data; None: an event of an earlier version
)

holds = Table(
    "holds",
    METADATA,
    Column("study_uid", String, primary_key=True),  # never expires, and cannot be erased
    Column("reason", String, nullable=False),
    Column("by", String, nullable=False),
    Column("at", String, nullable=False),
)

removals = Table(
    "removals",  # begun and not ended: whoever starts next goes on with them
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("what", String, nullable=False),  # images | results | erasure
    Column("study_uid", String, nullable=False),
    Column("job_id", String, nullable=False, server_default=""),  # of results
    Column("detail", String, nullable=False, server_default="{}"),  # JSON
)

commitments = Table(
    "commitments",  # asked of us, and not reported yet
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("transaction_uid", String, nullable=False),
    Column("ae_title", String, nullable=False),
    Column("wanted", String, nullable=False),  # JSON: SOP class UIDs by SOP instance UID
    Column("attempts", Integer, nullable=False, default=0),
    Column("next_at", String, nullable=False),
)

cursors = Table(
    "cursors",
    METADATA,
    Column("name", String, primary_key=True),
    Column("seq", Integer, nullable=False),  # the last event that this reader is done with
)

expectations = Table(
    "expectations",
    METADATA,
    Column("study_uid", String, primary_key=True),
    Column("source", String, primary_key=True),  # who said it: ian UID, mpps UID, query NAME
    Column("state", String, nullable=False),  # open: more is said; final
    Column("instances", Integer, nullable=False),
    Column("sop_uids", String, nullable=False, server_default="[]"),  # JSON; if they were named
    Column("at", String, nullable=False),
    Index("expectations_by_source", "source"),
)

pulls = Table(
    "pulls",  # studies that are to be fetched
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("source", String, nullable=False),
    Column("wanted", String, nullable=False),  # JSON: the keys of the query
    Column("state", String, nullable=False),  # waiting -> pulling -> done | failed
    Column("expected", Integer, nullable=False, default=0),
    Column("stored", Integer, nullable=False, default=0),
    Column("detail", String, nullable=False, default=""),
    Column("at", String, nullable=False),
    Index("pulls_by_state", "state"),
)

tokens = Table(
    "tokens",
    METADATA,
    Column("digest", String, primary_key=True),  # of the token, which is written nowhere
    Column("purpose", String, nullable=False),
    Column("expires_at", String, nullable=False),
    Column("used_at", String),
)

_REFUSED = {
    "update": "UPDATE ON events",
    "delete": "DELETE ON events",
    # REPLACE removes a row without asking the trigger on DELETE (sqlite.org/lang_conflict.html).
    "replace": "INSERT ON events WHEN NEW.seq IS NOT"
    " (SELECT coalesce(max(seq), 0) + 1 FROM events)",
}
TRIGGERS = tuple(
    f"CREATE TRIGGER IF NOT EXISTS events_refuse_{name} BEFORE {what}"
    " BEGIN SELECT RAISE(ABORT, 'events are append-only'); END"
    for name, what in _REFUSED.items()
)


def create(connection: Connection) -> None:
    """Make what is not there: tables, columns, indexes and triggers."""
    METADATA.create_all(connection)
    for table in METADATA.sorted_tables:
        there = {each["name"] for each in inspect(connection).get_columns(table.name)}
        for column in table.columns:
            if column.name not in there:
                told = CreateColumn(column).compile(dialect=connection.dialect)
                connection.execute(text(f"ALTER TABLE {table.name} ADD COLUMN {told}"))
        for index in table.indexes:
            index.create(connection, checkfirst=True)
    for trigger in TRIGGERS:
        connection.execute(text(trigger))
