"""What several tests share: made for the tests of ``cli``."""

from __future__ import annotations

import json


def strict_json(text: str) -> dict:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)
