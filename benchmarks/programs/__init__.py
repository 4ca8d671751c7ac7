"""Other programs side by side with this one: the same splits, backbone weights and time, each at its own defaults.

    python -m benchmarks.programs.bed packages/digits-lite0 beds/digits-lite0
    python -m benchmarks.programs.run beds/* --programs snella,trainer,peft --seconds 120 --out FILE
    python -m benchmarks.programs.run beds/* --programs fastai --python ENV/bin/python --out FILE

A program is a script here that imports nothing but itself and `filling`, so that it runs in an environment of its own.
The time is that of one training from the first line to the last, with the reading of images and, of this program, its
test and figures.
"""
