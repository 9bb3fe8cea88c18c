"""Signals that wait until a step is whole."""

__all__ = ["Interrupts"]

import signal
import threading
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Keeps the first SIGINT or SIGTERM until `answer` is called; a second is answered at once.

    To answer is to do what would have been done without this: to raise `KeyboardInterrupt`, to
    end the process, to call a handler. Signals that are ignored stay ignored, and in a thread,
    which gets none, nothing is kept.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                # None is a handler that Python did not set, and could not set again.
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._handlers[number] = signal.signal(number, self._keep)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.answer()
        self._restore()

    def answer(self) -> None:
        """Answers the signal that was kept, if there is one."""
        if self.received is not None:
            number, self.received = self.received, None
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        while self._handlers:
            signal.signal(*self._handlers.popitem())

    def _keep(self, number: int, _: object) -> None:
        second, self.received = self.received is not None, number
        if second:
            self.answer()
