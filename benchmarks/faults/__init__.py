"""Faults on purpose: runs that are killed, disks that are full, files that are damaged, and what attar makes of them.

    python -m benchmarks.faults --list
    python -m benchmarks.faults --group kills --trials 200 --seed 0 --results benchmarks/results/DATE-faults-kills.json

Each trial has a number, and its seed is that of the command and this number: `--only 17 --seed 0` repeats one alone.
"""

SLICE = {
    "kills": 4,
    "save": 0,
    "damage": 60,
    "signals": 6,
    "two": 3,
    "numbers": 7,
    "verbs": 6,
    "hostile": 14,
    "fuzz": 400,
    "planted": 12,
}
"""Of each group that runs in seconds so many trials (0 is all of one save): what the tests do of the campaign."""
