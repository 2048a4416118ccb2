"""The parts of training, one idea a file; ``tauten.make.model.train.Trainer`` puts them together.

::

    settings.py     Training, Trained       how to train, and what training did
    loop.py         epochs, steps, batches
    stepper.py      gradients into steps, zeros held
    best.py         the best weights so far, and when to stop
    precision.py    fewer bits
    recompute.py    less memory for more time
    processes.py    several processes and devices, through accelerate
    checkpoint.py   going on after a kill
    randomness.py   the state of every random generator
    trial.py        a module run once, without a trace
    memory.py       the peak
"""
