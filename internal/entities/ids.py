"""Identifiers."""

from uuid import UUID

import uuid_utils


def new_id() -> UUID:
    """A UUIDv7 (RFC 9562): sorts by creation time, tells nothing else."""
    return UUID(int=uuid_utils.uuid7().int)
