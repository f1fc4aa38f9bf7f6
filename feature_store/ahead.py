"""Work ahead: an iterator's next values are made on a thread while the caller is busy with the one before."""

import threading
from collections.abc import Generator, Iterator
from queue import Full, Queue
from typing import Final, TypeVar

T = TypeVar("T")
_END: Final = object()
_LOOK_SECONDS: Final = 0.1


def ahead(values: Iterator[T], depth: int = 2) -> Generator[T]:
    """The same values in order, up to `depth` of them made before they are asked for; an error comes where its value would have come.

    The thread ends when the values do, or soon after the caller closes the iterator.
    """
    queue: Queue[object] = Queue(depth)
    is_closed = threading.Event()

    def put(value: object) -> None:
        while not is_closed.is_set():
            try:
                queue.put(value, timeout=_LOOK_SECONDS)
            except Full:
                continue
            return

    def work() -> None:
        try:
            for value in values:
                put(value)
                if is_closed.is_set():
                    return
            put(_END)
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            put(_Failure(error))

    thread = threading.Thread(target=work, name="ahead", daemon=True)
    thread.start()
    try:
        while (value := queue.get()) is not _END:
            if isinstance(value, _Failure):
                raise value.error
            yield value  # type: ignore[misc]
    finally:
        is_closed.set()
        thread.join()


class _Failure:
    """What the thread failed with."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
