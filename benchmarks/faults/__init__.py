"""Faults on purpose: runs that are killed, disks that are full, files that are damaged, and what attar makes of them.

    python -m benchmarks.faults --list
    python -m benchmarks.faults --group kills --trials 200 --seed 0 --results benchmarks/results/DATE-faults-kills.json

Each trial has a number, and its seed is that of the command and this number: `--only 17 --seed 0` repeats one alone.
"""
