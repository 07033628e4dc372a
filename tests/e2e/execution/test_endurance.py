"""A long run costs as much at its end as at its beginning."""

import psutil
import pytest

from harness.records import State


class Watch:
    """Resident bytes of this process after so many records."""

    def __init__(self, *counts):
        self.resident = dict.fromkeys(counts, 0)

    def on(self, event):
        if event.kind == "record" and event.done in self.resident:
            self.resident[event.done] = psutil.Process().memory_info().rss


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_thousand_trials_do_not_make_the_runner_grow(execute, make_trial):
    watch = Watch(200, 1000)
    trials = [make_trial("noop", f"cell{i:04}") for i in range(1000)]
    ran = execute(*trials, listener=watch)
    assert [r.state for r in ran.records] == [State.OK] * 1000
    # The records themselves are handed back, some 10 KiB each; the rest must not grow.
    growth = watch.resident[1000] - watch.resident[200]
    assert growth < 800 * 20 * 1024, f"{growth / 2**20:.1f} MiB"
    assert not [p for p in psutil.Process().children() if p.status() == psutil.STATUS_ZOMBIE]
