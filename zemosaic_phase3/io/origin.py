"""Where pixels come from, as a later run can know it again."""

from __future__ import annotations

import os
from typing import NamedTuple


class Identity(NamedTuple):
    """What tells a file from another one in its place, and from itself after it was written again."""

    size: int
    modified_ns: int
    number: int  # inode
    changed_ns: int  # of its inode

    @classmethod
    def of(cls, status: os.stat_result) -> Identity:
        """Return what the system knows of a file."""
        return cls(status.st_size, status.st_mtime_ns, status.st_ino, status.st_ctime_ns)

    def is_same(self, now: Identity) -> bool:
        """Return whether this is the file of before, as it was.

        Some network folders give a file another number each time they are asked, and links and permissions change its
        inode: only both together mean another file.
        """
        as_it_was = (self.size, self.modified_ns) == (now.size, now.modified_ns)
        return as_it_was and (self.number == now.number or self.changed_ns == now.changed_ns)


class Origin(NamedTuple):
    """The file behind a frame, and all that happens to its pixels on their way to :meth:`FrameSource.read_rows`.

    Attributes
    ----------
    path : str
        Absolute.
    identity : Identity
        Of the file when it was opened.
    recipe : str
        How numbers become samples; two frames with the same file and recipe have the same samples.
    """

    path: str
    identity: Identity
    recipe: str
