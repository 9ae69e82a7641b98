"""Lines of a file by number, without the file in memory.

A file is read once, from its beginning to its end, when it is opened: every line is
checked, and what is kept of it is where it begins, how long it is and a checksum. Any
line can then be read by its index, so that an order drawn from a seed is exact however
large the file is, and a line that was changed under a run is noticed.

Axes: N lines with content.
"""

import array
import dataclasses
import hashlib
import io
import stat
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

_MAX_LINE_BYTES = 2**31 - 1


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LineFile:
    """An open file whose lines can be read in any order, from any thread.

    Attributes:
        path: The file.
        digest: Of its content, in hexadecimal digits.
        value_N: What the check of each line returned, uint32.
        number_N: The number of each line in the file, from 1, uint32.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "lines.txt"
        >>> _ = path.write_bytes(b"one\\n\\nthree")
        >>> file = open_lines(path, lambda line, where: len(line))
        >>> len(file), file.read(1), file.number_N.tolist(), file.value_N.tolist()
        (2, b'three', [1, 3], [3, 5])
    """

    path: Path
    digest: str
    value_N: np.ndarray
    number_N: np.ndarray
    _begin_N: np.ndarray
    _size_N: np.ndarray
    _checksum_N: np.ndarray
    _file: io.RawIOBase
    _lock: threading.Lock

    def __len__(self) -> int:
        return len(self.number_N)

    def where(self, index: int) -> str:
        """What errors about a line begin with.

        Args:
            index: The line, counted from 0 among those with content.

        Returns:
            The file and the number of the line.
        """
        return f"{self.path}, line {self.number_N[index]}: "

    def read(self, index: int) -> bytes:
        """Read a line.

        Args:
            index: The line, counted from 0 among those with content.

        Returns:
            Its bytes, without the line feed.

        Raises:
            ValueError: It is not what it was when the file was opened, or cannot be
                read any more.
        """
        try:
            with self._lock:
                self._file.seek(int(self._begin_N[index]))
                line = self._file.read(int(self._size_N[index])) or b""
        except OSError as error:
            raise ValueError(
                f"{self.where(index)}cannot be read any more ({error.strerror}); "
                "resume from the last checkpoint"
            ) from error
        if zlib.crc32(line) != self._checksum_N[index]:
            raise ValueError(
                f"{self.where(index)}has changed since the file was opened; put the "
                "old file back, or start anew with the new one"
            )
        return line


def open_lines(path: Path, check: Callable[[bytes, str], int]) -> LineFile:
    """Open a file of lines and check each of them. Blank lines are left out.

    Only a line feed ends a line; a byte-order mark before the first is left out, too.

    Args:
        path: The file.
        check: (line, what errors begin with) -> a number to keep of it, at least 0 and
            below 2^32. It raises ValueError where the line is not as it should be.

    Returns:
        The file.

    Raises:
        ValueError: The file is missing, cannot be read or has no line with content, or
            a line is refused.
    """
    try:
        # A pipe has no second reading, and opening one would wait for ever.
        if not stat.S_ISREG(path.stat().st_mode):
            raise OSError(0, "it is no regular file")
        file = open(path, "rb")  # noqa: SIM115 (stays open, to read from)
    except OSError as error:
        raise ValueError(
            f"{path}: cannot be read ({error.strerror}); check the path"
        ) from error
    try:
        return _index(path, file, check)
    except BaseException:
        file.close()
        raise


def _index(
    path: Path, file: io.BufferedReader, check: Callable[[bytes, str], int]
) -> LineFile:
    """Read a file once, line by line."""
    # Of plain numbers, as lists of Python objects would be larger than many a file.
    begins, sizes = array.array("q"), array.array("I")
    checksums, numbers, values = array.array("I"), array.array("I"), array.array("I")
    digest = hashlib.blake2b(digest_size=16)
    begin = 0
    for number, line in enumerate(file, start=1):
        digest.update(line)
        skip = 3 if number == 1 and line.startswith(b"\xef\xbb\xbf") else 0
        content = line[skip:].removesuffix(b"\n")
        if content.strip():
            where = f"{path}, line {number}: "
            if len(content) > _MAX_LINE_BYTES:
                raise ValueError(
                    f"{where}{len(content)} bytes are more than {_MAX_LINE_BYTES}; "
                    "split it"
                )
            values.append(check(content, where))
            begins.append(begin + skip)
            sizes.append(len(content))
            checksums.append(zlib.crc32(content))
            numbers.append(number)
        begin += len(line)
    if not numbers:
        raise ValueError(f"{path}: holds no line; write one JSON object a line")
    return LineFile(
        path=path,
        digest=digest.hexdigest(),
        value_N=np.array(values, np.uint32),
        number_N=np.array(numbers, np.uint32),
        _begin_N=np.array(begins, np.int64),
        _size_N=np.array(sizes, np.uint32),
        _checksum_N=np.array(checksums, np.uint32),
        # Without a buffer, which would read more than is asked for.
        _file=file.detach(),
        _lock=threading.Lock(),
    )
