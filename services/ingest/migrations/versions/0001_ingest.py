"""Sources, batches, record ids, pushed rows, quarantine, files and snapshots."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "ingest_0001"
down_revision = None
branch_labels = None
depends_on = None


def _source_key() -> list[sa.Column]:
    return [
        sa.Column("project", sa.Text, primary_key=True),
        sa.Column("source", sa.Text, primary_key=True),
    ]


def _of_source() -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(["project", "source"], ["sources.project", "sources.source"])


def upgrade() -> None:
    op.create_table(
        "sources",
        *_source_key(),
        sa.Column("document", JSONB, nullable=False),
        sa.Column("document_hash", sa.Text, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("cursor_us", sa.BigInteger),
        sa.Column("create_us", sa.BigInteger, nullable=False),
        sa.Column("update_us", sa.BigInteger, nullable=False),
        sa.CheckConstraint("revision > 0", name="sources_revision"),
    )
    # a row of its own, so that pushing and pulling do not wait for each other
    op.create_table(
        "watermarks",
        *_source_key(),
        sa.Column("watermark_us", sa.BigInteger),
        _of_source(),
    )
    op.create_table(
        "batches",
        *_source_key(),
        sa.Column("batch", sa.Text, primary_key=True),
        sa.Column("position", sa.BigInteger, sa.Identity(always=True), nullable=False),
        sa.Column("is_halted", sa.Boolean, nullable=False),
        sa.Column("read_rows", sa.BigInteger, nullable=False),
        sa.Column("accepted_rows", sa.BigInteger, nullable=False),
        sa.Column("duplicate_rows", sa.BigInteger, nullable=False),
        sa.Column("quarantined_rows", sa.BigInteger, nullable=False),
        sa.Column("defaulted_values", sa.BigInteger, nullable=False),
        sa.Column("rules", JSONB, nullable=False),
        sa.Column("known_from_us", sa.BigInteger),
        sa.Column("known_until_us", sa.BigInteger),
        sa.Column("source_revision", sa.BigInteger, nullable=False),
        sa.Column("commit_us", sa.BigInteger, nullable=False),
        sa.Column("snapshot", sa.Text),
        _of_source(),
        sa.CheckConstraint(
            "is_halted OR read_rows = accepted_rows + duplicate_rows + quarantined_rows",
            name="batches_add_up",
        ),
        sa.CheckConstraint(
            "NOT is_halted OR accepted_rows = 0", name="batches_halted_take_nothing"
        ),
    )
    op.create_index("batches_newest", "batches", ["project", "source", "position"])
    op.create_table(
        "records",
        *_source_key(),
        sa.Column("record_id", sa.Text, primary_key=True),
        _of_source(),
    )
    # pushed and acknowledged, in no file yet
    op.create_table(
        "pending_records",
        *_source_key(),
        sa.Column("record_id", sa.Text, primary_key=True),
        sa.Column("known_us", sa.BigInteger, nullable=False),
        sa.Column("batch", sa.Text, nullable=False),
        sa.Column("row", sa.Text, nullable=False),
        sa.ForeignKeyConstraint(
            ["project", "source", "record_id"],
            ["records.project", "records.source", "records.record_id"],
        ),
        sa.ForeignKeyConstraint(
            ["project", "source", "batch"], ["batches.project", "batches.source", "batches.batch"]
        ),
    )
    op.create_index("pending_records_known", "pending_records", ["project", "source", "known_us"])
    op.create_table(
        "quarantined_records",
        *_source_key(),
        sa.Column("position", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("rule", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("record", JSONB, nullable=False),
        sa.Column("batch", sa.Text, nullable=False),
        sa.Column("quarantine_us", sa.BigInteger, nullable=False),
        sa.Column("replay_us", sa.BigInteger),
        sa.UniqueConstraint("project", "source", "digest", name="quarantined_once"),
        sa.ForeignKeyConstraint(
            ["project", "source", "batch"], ["batches.project", "batches.source", "batches.batch"]
        ),
    )
    # a snapshot is the first `files` files of its source
    op.create_table(
        "files",
        *_source_key(),
        sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("batch", sa.Text, nullable=False),
        sa.Column("columns", JSONB, nullable=False),
        sa.ForeignKeyConstraint(
            ["project", "source", "batch"], ["batches.project", "batches.source", "batches.batch"]
        ),
        sa.CheckConstraint("number > 0 AND rows > 0", name="files_hold_rows"),
        sa.CheckConstraint("digest ~ '^sha256:[0-9a-f]{64}$'", name="files_digest"),
    )
    op.create_table(
        "snapshots",
        *_source_key(),
        sa.Column("snapshot", sa.Text, primary_key=True),
        sa.Column("files", sa.BigInteger, nullable=False),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("known_until_us", sa.BigInteger),
        sa.Column("create_us", sa.BigInteger, nullable=False),
        _of_source(),
        sa.UniqueConstraint("project", "source", "files", name="snapshots_one_a_file"),
        sa.CheckConstraint("snapshot ~ '^sha256:[0-9a-f]{64}$'", name="snapshots_hash"),
    )
