"""A short soak: three rounds of mixed clients, every exchange accounted for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.adversity import soak

if TYPE_CHECKING:
    from pathlib import Path

ROUNDS = 3
EXCHANGES = 1500


@pytest.mark.slow
def test_mixed_clients_and_a_breaking_provider(tmp_path: Path) -> None:
    tally = soak.run(tmp_path, rounds=ROUNDS, exchanges=EXCHANGES, seed=7).tally
    assert not tally.wrong, f"{len(tally.wrong)}:\n" + "\n".join(tally.wrong[:5])
    assert tally.rounds == ROUNDS
    assert sum(tally.clients.values()) == ROUNDS * EXCHANGES
    # each kind of client, of fault and of charge took part
    assert set(tally.clients) == {"good", "slow", "leaving", "bad"}
    assert {"ok", "client_disconnected", "upstream_cut", "upstream_unavailable"} <= set(
        tally.outcomes
    )
    assert set(tally.sources) == {"reported", "counted", "none"}
    assert tally.struck > 0
    assert tally.used > 0
