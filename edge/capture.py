"""What is kept of a body as it passes: its head, its tail and its size, content coding undone. `capture_of` begins one."""

import zlib
from typing import Any

from schemas.event import Body
from schemas.settings import CaptureSettings

_STEP = 64 * 1024
_RATIO_MAX = 100
_PIECE_BYTES = 4 * 1024 * 1024
"""A piece that unpacks to more than this and that many times its size is a bomb: it would hold up everybody. Text comes to
five or ten, a stream of like events to a hundred and more."""
_NO_TAIL = bytearray()


class Capture:
    """Fed the pieces of one body; holds at most the head and the tail. The pieces themselves are never changed."""

    left_out: str | None = None
    size = 0
    _tail = _NO_TAIL

    def __init__(self, settings: CaptureSettings) -> None:
        self._settings = settings
        self._room = settings.head_bytes
        self._head: list[bytes] = []

    def feed(self, piece: bytes) -> None:
        length = len(piece)
        self.size += length
        if self.left_out is not None:
            return
        room = self._room
        if room >= length:
            self._head.append(piece)
            self._room = room - length
            return
        if room > 0:
            self._head.append(piece[:room])
            self._room = 0
            piece = piece[room:]
        if self._tail is _NO_TAIL:
            self._tail = bytearray()
        self._tail += piece
        if len(self._tail) > 2 * self._settings.tail_bytes:
            del self._tail[: -self._settings.tail_bytes or None]

    def ends_with(self, text: bytes) -> bool:
        """Whether the last piece that was kept does."""
        last = self._tail or (self._head[-1] if self._head else b"")
        return last.endswith(text)

    def body(self, left_out: str | None = None) -> Body:
        """What is kept. `left_out` says why nothing shall be."""
        reason = left_out or self.left_out
        if reason is not None:
            return Body(size=self.size, left_out=reason)
        head = self._head[0] if len(self._head) == 1 else b"".join(self._head)
        if not self._tail:
            return Body(size=self.size, head=head)
        tail = bytes(self._tail[-self._settings.tail_bytes :]) if self._settings.tail_bytes else b""
        if len(head) + len(tail) == self.size:
            return Body(size=self.size, head=head + tail)
        return Body(size=self.size, head=head, tail=tail)


class _CodedCapture(Capture):
    """Of a body with a content coding: what it says is kept, not how it came. One nobody can read is only measured."""

    def __init__(self, settings: CaptureSettings, unpack: Any) -> None:
        super().__init__(settings)
        self._decoded = 0
        self._unpack = unpack
        if unpack is None:
            self.left_out = "encoding"

    def feed(self, piece: bytes) -> None:
        if self._unpack is None:
            super().feed(piece)
            return
        bound = min(self._settings.decoded_bytes_max, self._decoded + _PIECE_BYTES + len(piece) * _RATIO_MAX)
        try:
            data = self._unpack.decompress(piece, _STEP)
            while data:
                self._decoded += len(data)
                super().feed(data)
                if self._decoded > bound:
                    self.left_out, self._unpack = "encoding", None
                    return
                data = self._unpack.decompress(self._unpack.unconsumed_tail, _STEP)
        except zlib.error:
            self.left_out, self._unpack = "encoding", None


def capture_of(settings: CaptureSettings, coding: bytes = b"") -> Capture:
    """For a body whose content-encoding is `coding`."""
    if coding in (b"", b"identity"):
        return Capture(settings)
    if coding in (b"gzip", b"x-gzip"):
        return _CodedCapture(settings, zlib.decompressobj(31))
    return _CodedCapture(settings, _Deflate() if coding == b"deflate" else None)


class _Deflate:
    """`deflate` means zlib's format, but some servers send the bare stream: its first two bytes tell."""

    def __init__(self) -> None:
        self._inner: Any = None
        self._first = b""
        self.unconsumed_tail = b""

    def decompress(self, data: bytes, limit: int) -> bytes:
        if self._inner is None:
            data = self._first = self._first + data
            if len(data) < 2:
                return b""
            is_zlib = data[0] & 0x0F == 8 and (data[0] << 8 | data[1]) % 31 == 0
            self._inner = zlib.decompressobj(15 if is_zlib else -15)
        unpacked: bytes = self._inner.decompress(data, limit)
        self.unconsumed_tail = self._inner.unconsumed_tail
        return unpacked
