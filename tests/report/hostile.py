"""Names that a careless page would run, break at, or show as something else."""

CLASSES = (
    "</script><script>window.hacked='class'</script>",
    "<img src=x onerror=\"window.hacked='image'\">",
    "a \"quoted\", 'name' & <b>bold</b>\u202egnp\u2028.tac\x1b[31m\x07",
)
PREFIXES = (
    '"><svg onload=window.hacked=1>',
    "={1+1}'; DROP TABLE selection; --",
    "line\nbreak, comma\x1b]0;owned\x07",
    "<!-- ]]> {{7*7}} ${window.hacked=2}",
)


def sample_id(number: int) -> str:
    """A unique and hostile id."""
    return f"{PREFIXES[number % len(PREFIXES)]}{number:04d}"
