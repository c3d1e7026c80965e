"""Values as JSON inside a page: no character that HTML could take for markup, nothing that JSON does not know."""

import json
import math
from typing import Any


def embed(value: Any) -> str:
    """JSON that no HTML parser can take for anything else, whatever text the data holds."""
    text = json.dumps(finite(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    # Half a surrogate pair, as a file name that is no text leaves it, is not UTF-8.
    return text.encode("utf-8", "backslashreplace").decode()


def size(value: Any) -> int:
    """Bytes of a value in the page."""
    return len(embed(value).encode())


def finite(value: Any) -> Any:
    """JSON knows no NaN and no infinity: null stands for both."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): finite(item) for name, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, (list, tuple)) else value
