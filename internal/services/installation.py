"""What is known of the whole installation, for those who run it: as relays and sweeps last saw it."""

import asyncio
import time

from internal.entities.watch import Installation
from internal.repositories.store import Store
from pkg import logger
from pkg.apperr import AppError

FRESH_SECONDS = 2.0
WAIT_SECONDS = 3.0


class InstallationService:
    """Counts only. Several readers at once cost one question to the database."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._log = logger.get("installation")
        self._asking = asyncio.Lock()
        self._until = 0.0
        self.latest: Installation | None = None
        """None while the database doesn't answer."""

    async def refresh(self) -> None:
        """Brings `latest` up to date, within a few seconds. Raises nothing."""
        async with self._asking:
            if time.monotonic() < self._until:
                return
            try:
                async with asyncio.timeout(WAIT_SECONDS), self._store.system("what relays have seen") as tx:
                    self.latest = await tx.installation.get()
            except (AppError, TimeoutError) as error:
                self.latest = None
                self._log.warning("what relays have seen can't be read", cause=type(error).__name__)
            self._until = time.monotonic() + FRESH_SECONDS
