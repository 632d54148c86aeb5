"""Who may stream: what a machine can carry, as it is measured, and promises to those who must come back."""

from __future__ import annotations

import asyncio
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.fluid import Found, overload, run

from musiclm_deploy.runtime.scheduler import Activity
from musiclm_deploy.serve.capacity import MARGIN, Capacity
from musiclm_deploy.serve.tickets import Tickets


def measured(*parts: tuple[int, float, float], slots: float = 16) -> Capacity:
    """Return what is known after some work. parts: clips that ran together, busy seconds, audio seconds."""
    capacity, busy_s, audio_s = Capacity(), 0.0, 0.0
    for clips, busy, audio in parts:
        capacity.look(Activity(clips, {}, math.inf, 0, slots, busy_s, audio_s))
        busy_s, audio_s = busy_s + busy, audio_s + audio
        capacity.look(Activity(clips, {}, math.inf, 0, slots, busy_s, audio_s))
        capacity.look(Activity(0, {}, math.inf, 0, slots, busy_s, audio_s))
    return capacity


@pytest.mark.parametrize(("pace", "streams"), [(0.5, 1), (1.2, 1), (2.31, 2), (5.0, 4), (12.0, 10), (100.0, 16)])
def test_as_many_streams_as_are_made_as_fast_as_they_play(pace: float, streams: int) -> None:
    """Fault: more streams than the machine makes, more than have slots, none on a machine that is too slow for one."""
    capacity = measured((4, 2.0, 2.0 * pace))
    assert capacity.streams == streams and capacity.pace(4) == capacity.pace(9) == capacity.pace(1) == pytest.approx(pace)
    assert streams in (1, 16) or MARGIN * streams <= pace < MARGIN * (streams + 1)


def test_streams_that_help_each_other() -> None:
    """Fault: a batch whose rows share the cost of a step, of which one alone is taken for the measure of many."""
    assert measured((1, 3.0, 6.0), (4, 3.0, 18.0), (1, 3.0, 6.0)).streams >= 4


def test_a_machine_that_changes() -> None:
    """Fault: what was measured once is believed for ever: of a slower machine, or of one that was slow for a while."""
    assert measured((4, 3.0, 30.0), *20 * [(4, 3.0, 12.0)]).streams == 3
    was_slow = [(1, 3.0, 30.0), (8, 3.0, 9.0)]
    assert measured(*was_slow).streams <= 5 and measured(*was_slow, *60 * [(5, 3.0, 30.0)]).streams >= 7


def test_work_without_audio_is_no_pace() -> None:
    """Fault: clips that were cancelled before they sounded are taken for a machine that makes nothing."""
    assert measured((2, 1.0, 10.0), (2, 5.0, 0.0)).pace(2) == pytest.approx(10)


def test_first_audio() -> None:
    """Fault: a first audio that is promised without those who are before it, or a newcomer who takes the time that others have not."""
    capacity = measured((4, 1.0, 10.0))
    for playing in (0, 2, 4, 8) * 5:
        capacity.note_first(0.1 + 0.02 * playing, playing, 0)
    for playing, silent, seconds in ((0, 0, 0.1), (3, 0, 0.16), (6, 0, 0.22), (2, 1, 2 * 0.16)):
        assert capacity.first_s(playing, silent) == pytest.approx(seconds, rel=0.05)
    assert capacity.admits(0, 0, math.inf) and capacity.admits(3, 0, 2.0) and not capacity.admits(3, 0, 0.15)
    assert not capacity.admits(3, 3, 0.5) and not capacity.admits(8, 0, 100.0)


def test_tickets() -> None:
    """Fault: a promise that holds for another request, twice, too early or for ever; all who were told counted when none comes back."""

    def job(owner: str, body: str) -> Any:
        return SimpleNamespace(owner=owner, body_sha256=body)

    async def main() -> None:
        tickets = Tickets()
        assert tickets.give(job("a", "1"), 10) and tickets.expected() == 1 and tickets.expected(5) == 0
        assert tickets.take(job("a", "1")) is None
        await asyncio.sleep(10)
        assert tickets.take(job("b", "1")) is tickets.take(job("a", "2")) is None
        assert tickets.take(job("a", "1")) == 10 and tickets.take(job("a", "1")) is None
        for number in range(60):
            tickets.give(job("a", str(number)), 1)
            await asyncio.sleep(4)
        tickets.give(job("a", "last"), 1)
        assert tickets.expected() < 0.1

    run(main())


@pytest.mark.parametrize(("pace", "first_s"), [(20.0, 0.05), (5.0, 0.15)], ids=["fast", "slow"])
@pytest.mark.parametrize("retries", [0, 10])
def test_twice_of_what_can_be_made(pace: float, first_s: float, retries: int) -> None:
    """Fault: a stream that runs dry by others, a place that stays empty, somebody who comes back when told and is refused again."""
    found = Found()
    run(overload(found, pace, first_s, 2.0, retries))
    assert found.refused > 20 and not [one.silence_s for one in found.clips if one.silence_s > 0.1]
    off_s = np.percentile(found.off_s, (50, 95))
    assert abs(off_s[0]) < 0.02 and off_s[1] < 0.1
    made = sum(one.seconds for one in found.clips) / found.seconds
    assert made > 0.6 * pace, made
    assert found.taken >= 0.95 * found.returned and (found.returned > 50 if retries else not found.returned)
