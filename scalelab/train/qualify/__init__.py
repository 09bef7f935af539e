"""Qualification: which ways to execute a step are right and fast on the GPU of this worker.

`scalelab.train.qualify.choose.qualified` is called at the start of an attempt. It reads the verdict
on this GPU, or measures one: a child process (`child`) runs the cases (`cases`), so that a kernel
that crashes or hangs ends the child and not the worker (`measure`). One worker measures for all
that share a results folder (`lock`).
"""
