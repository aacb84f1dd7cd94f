"""What is true: records, signatures, soundness, finality and the state they lead to.

Pure: nothing here reads a clock, draws a random number, opens a file or awaits.
"""
