from __future__ import annotations

import threading

from volary_inference.domain.events import EventRing, PredictionRecord
from volary_inference.domain.predictions import About, Origin, VersionKey


def record(n: int) -> PredictionRecord:
    key = VersionKey("p", "m", 1)
    return PredictionRecord(str(n), key, "d", "model", Origin("r"), About(), n, n)


def test_a_full_ring_drops_and_counts() -> None:
    ring = EventRing(2)
    assert [ring.offer(record(n)) for n in range(3)] == [True, True, False]
    assert ring.dropped == 1
    assert [each.id for each in ring.peek(10, 0)] == ["0", "1"]
    ring.discard(1)
    assert ring.offer(record(3))
    assert [each.id for each in ring.peek(10, 0)] == ["1", "3"]


def test_a_reader_wakes_on_the_first_record_and_on_close() -> None:
    ring, seen = EventRing(8), []
    reader = threading.Thread(target=lambda: seen.append(ring.peek(8, 30)))
    reader.start()
    ring.offer(record(1))
    reader.join(30)
    assert [each.id for each in seen[0]] == ["1"]
    ring.discard(1)
    reader = threading.Thread(target=lambda: seen.append(ring.peek(8, 30)))
    reader.start()
    ring.close()
    reader.join(30)
    assert seen[1] == []
    assert not ring.offer(record(2))
