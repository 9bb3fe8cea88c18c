"""Serving: from a run to a page in the browser, until Ctrl-C."""

__all__ = ["serve"]

import webbrowser

from pyrovae.explore.server import Server
from pyrovae.explore.session import Session
from pyrovae.runs import Run

# How many seconds an answer that is being made may take in the end.
PATIENCE = 10


def serve(run: Run, *, port: int = 0, open_browser: bool = True) -> None:
    """Prints the address of a run's page, opens it, and serves it until it is interrupted.

    Args:
        run: A run with its data.
        port: The port, or 0 for one that is free.
        open_browser: Whether to open the page.

    Raises:
        InputError: If the run cannot be explored, or the port cannot be had.
    """
    with Server(Session(run), port) as server:
        print(f"{server.url}\nCtrl-C ends it.", flush=True)
        if open_browser:
            webbrowser.open(server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt as stop:
            # SIGTERM is a kind of it, and has its own exit code.
            if type(stop) is not KeyboardInterrupt:
                raise
        finally:
            # A process that ends within torch's work would not end quietly.
            server.lock.acquire(timeout=PATIENCE)
