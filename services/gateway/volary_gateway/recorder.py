"""Count attempts, store the counts in batches, and know whether any was lost.

A record is counted at most once: a batch has an id, and one whose commit is unknown is repeated
under it. What is lost (a stream that broke, a process that died with counts in memory) is found
against Envoy's own counters and makes the generation that was live incomplete.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace

from volary_kit.clock import Clock
from volary_kit.database import Database
from volary_kit.errors import VolaryError

from volary_gateway.admin import EnvoyAdmin, Reading
from volary_gateway.domain.completeness import Account, Verdict
from volary_gateway.domain.evidence import Attempt, Counts
from volary_gateway.domain.names import ModelName, VersionName
from volary_gateway.domain.traffic import Traffic
from volary_gateway.store import evidence as rows
from volary_gateway.store.evidence import Gap, StoredVariant

log = logging.getLogger(__name__)
FLUSH_S = 0.2
POLL_S = 0.5
POLL_SHARE = 100  # Envoy answers in the thread that takes pushes: of its time one part in this many
REST_S = 0.2  # how long a poll waits for pushes to be through
Live = Callable[[], Iterable[Traffic]]
Rest = Callable[[float], Awaitable[None]]


async def no_rest(_timeout_s: float) -> None:
    """Wait for no push."""


class Recorder:
    """The evidence of all models, between Envoy's log and Postgres."""

    def __init__(
        self,
        database: Database,
        admin: EnvoyAdmin,
        clock: Clock,
        live: Live,
        rest: Rest = no_rest,
    ) -> None:
        self._database = database
        self._admin = admin
        self._clock = clock
        self._live = live
        self._rest = rest
        self._counts = Counts()
        self._pending: tuple[uuid.UUID, Counts] | None = None
        self._flushing = asyncio.Lock()
        self._accounts: dict[str, Account] = {}
        self._gaps: dict[ModelName, dict[int, Gap]] = {}  # of each model by generation
        self._unsaved_accounts: set[str] = set()
        self._unsaved_gaps: set[tuple[ModelName, int]] = set()
        self._last: Reading | None = None

    async def load(self) -> None:
        """Read the accounts back; what was live while nobody counted is in doubt."""
        async with self._database.read() as transaction:
            self._accounts = await rows.accounts(transaction)
            for gap in await rows.gaps(transaction):
                self._gaps.setdefault(gap.model, {})[gap.generation] = gap
        self.doubt()

    def record(self, cluster: str, ended_us: int, attempt: Attempt | None) -> None:
        """Take one record; one that is no evidence is still one of Envoy's attempts."""
        if VersionName.of_cluster(cluster):
            self._account(cluster).note(ended_us)
            self._counts.records[cluster] += 1
        if attempt is not None:
            self._counts.add(attempt)

    def doubt(self, model: ModelName | None = None, *, is_final: bool = False) -> None:
        """Mark what is live as possibly incomplete: a log stream broke, or Envoy died."""
        for traffic in self._live():
            if model in (None, traffic.model):
                gap = self._gap(traffic.model, traffic.generation)
                gap = gap or Gap(traffic.model, traffic.generation)
                self._set(replace(gap, is_open=True, is_final=gap.is_final or is_final))

    async def flush(self) -> None:
        """Store what was counted; keep it when the database does not answer."""
        async with self._flushing:
            if self._pending is None and self._counts:
                self._pending, self._counts = (uuid.uuid4(), self._counts), Counts()
                self._unsaved_accounts |= self._pending[1].records.keys()
            accounts, gaps = set(self._unsaved_accounts), set(self._unsaved_gaps)
            if self._pending is None and not accounts and not gaps:
                return
            async with self._database.transaction() as transaction:
                if self._pending is not None:
                    await rows.add(transaction, *self._pending, self._clock.now_us())
                await rows.save_accounts(transaction, self._as_stored(accounts))
                found = [self._gap(*key) for key in sorted(gaps)]
                await rows.save_gaps(transaction, [gap for gap in found if gap is not None])
            self._pending = None
            self._unsaved_accounts -= accounts
            self._unsaved_gaps -= gaps

    def _as_stored(self, clusters: Iterable[str]) -> dict[str, Account]:
        """Return accounts without the records that are not in a batch yet."""
        return {
            cluster: Account(
                self._accounts[cluster].records - self._counts.records[cluster],
                self._accounts[cluster].known_lost,
            )
            for cluster in clusters
        }

    async def flush_always(self) -> None:
        """Store the counts every 0.2 s, for ever."""
        while True:
            try:
                await self.flush()
            except VolaryError as error:
                log.warning("evidence waits for the database: %s", error.reason)
            await asyncio.sleep(FLUSH_S)

    async def reconcile_always(self) -> None:
        """Hold the records against Envoy's counters every 0.5 s, for ever; of a slow one less."""
        while True:
            await self._rest(REST_S)  # the next push is some milliseconds away then
            began_s = self._clock.monotonic_s()
            reading = await self._admin.read()
            taken_s = self._clock.monotonic_s() - began_s
            if reading is not None:
                self._reconcile(reading)
            await asyncio.sleep(max(POLL_S, POLL_SHARE * taken_s))

    def _reconcile(self, reading: Reading) -> None:
        last, self._last = self._last, reading
        if last is not None and reading.uptime_s < last.uptime_s:
            self._begin_again()
        elif last is not None and reading.dropped > last.dropped:
            self.doubt()
        self._forget_all_but(reading)
        now_us = self._clock.now_us()
        verdicts: dict[ModelName, list[Verdict]] = {}
        for cluster, poll in reading.polls.items():
            version = VersionName.of_cluster(cluster)
            if version is not None:
                account = self._account(cluster)
                before = account.known_lost
                account.poll(poll)
                verdict = account.judge(now_us)
                if verdict.is_restarted:
                    self._counts.records.pop(cluster, None)
                verdicts.setdefault(version.parent, []).append(verdict)
                if account.known_lost != before:
                    self._unsaved_accounts.add(cluster)
        for model, found in verdicts.items():
            self._conclude(model, found)

    def _account(self, cluster: str) -> Account:
        """Return a cluster's account; of one that has none no record was ever taken.

        So whatever Envoy has counted of it by then is lost, unless it comes in time.
        """
        account = self._accounts.get(cluster)
        if account is None:
            account = self._accounts[cluster] = Account(known_lost=0)
        return account

    def _begin_again(self) -> None:
        """Envoy died with what it had not sent; that can never be known."""
        self.doubt(is_final=True)
        for cluster, account in self._accounts.items():
            account.forget()
            self._counts.records.pop(cluster, None)

    def _forget_all_but(self, reading: Reading) -> None:
        """Begin again for each cluster that Envoy has no more: its counter went with it.

        When one of that name comes back, both sides begin at zero. One whose first record came
        while Envoy was asked is there, and in the next reading.
        """
        for cluster in self._accounts.keys() - reading.polls.keys():
            account = self._accounts[cluster]
            is_known = account.records or account.known_lost != 0
            if is_known and not account.has_since(reading.began_us):
                self.forget(cluster)

    def forget(self, cluster: str) -> None:
        """Begin an account anew: Envoy has no such cluster, or will not have it soon."""
        self._accounts[cluster] = Account(known_lost=0)
        self._counts.records.pop(cluster, None)
        self._unsaved_accounts.add(cluster)

    def _conclude(self, model: ModelName, verdicts: list[Verdict]) -> None:
        lost = sum(verdict.lost for verdict in verdicts)
        is_clear = all(verdict.is_clear for verdict in verdicts)
        if any(verdict.is_restarted for verdict in verdicts):
            self.doubt(model, is_final=True)
        known = self._gaps.get(model, {}).values()
        doubted = [gap for gap in known if gap.is_open or (lost < 0 < gap.lost)]
        if lost > 0 and not doubted:
            doubted = [Gap(t.model, t.generation) for t in self._live() if t.model == model]
        for gap in doubted:
            is_open = gap.is_final or not is_clear
            if lost or is_open != gap.is_open:
                self._set(replace(gap, lost=max(0, gap.lost + lost), is_open=is_open))

    def _gap(self, model: ModelName, generation: int) -> Gap | None:
        return self._gaps.get(model, {}).get(generation)

    def _set(self, gap: Gap) -> None:
        self._gaps.setdefault(gap.model, {})[gap.generation] = gap
        self._unsaved_gaps.add((gap.model, gap.generation))

    async def read(
        self, model: ModelName, rollout: str, from_generation: int
    ) -> tuple[list[StoredVariant], list[Gap]]:
        """Return the counts of a rollout, all that came in until now, and its gaps."""
        await self.flush()
        async with self._database.read() as transaction:
            variants = await rows.of_rollout(transaction, model, rollout, from_generation)
        generations = {stored.variant.generation for stored in variants}
        # a generation of which every record was lost has no row
        generations |= {
            t.generation for t in self._live() if (t.model, t.rollout) == (model, rollout)
        }
        known = self._gaps.get(model, {})
        return variants, [known[g] for g in generations if g in known]

    def is_reconciled(self, model: ModelName) -> bool:
        """Say whether a model's records are held against Envoy's counters by now.

        Without that nothing is complete.
        """
        serving = {
            VersionName.of(model, version).cluster
            for traffic in self._live()
            if traffic.model == model
            for version in traffic.receiving
        }
        return all(self._is_known(cluster) for cluster in serving)

    def _is_known(self, cluster: str) -> bool:
        account = self._accounts.get(cluster)
        if account is None:
            return self._last is not None and cluster not in self._last.polls
        return account.known_lost is not None
