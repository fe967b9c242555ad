"""lm_eval's prints and log, which a process has once for all its threads."""

import logging
import sys
import threading

from tasks.evaluation.quiet import Told, quiet

TRUNCATED = "a prompt exceeds model's maximum length"


def test_threads_wait_for_each_other_and_each_is_told_its_own() -> None:
    stdout, log = sys.stdout, logging.getLogger("lm_eval")
    handlers, told_second = log.handlers, list[Told]()

    def second() -> None:
        with quiet() as told:
            told_second.append(told)
            log.warning(TRUNCATED)
            log.warning(TRUNCATED)

    thread = threading.Thread(target=second)
    with quiet() as told:
        thread.start()
        thread.join(0.2)
        log.warning(TRUNCATED)
        assert told.truncated == 1
    thread.join()
    assert [each.truncated for each in told_second] == [2]
    assert sys.stdout is stdout
    assert log.handlers is handlers
