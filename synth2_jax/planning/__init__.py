"""Estimates of a config on a pod, made without a pod.

topologies       the pods that the TPU compiler can compile for, and what their chips can do
model_flops      FLOPs of a training step, of sampling, captions and tokenizing, by formula
hlo              what a compiled program computes and moves, loops counted in full
hlo_collectives  what its chips send to each other, and whether they compute meanwhile
hlo_text         its instructions, as text
dataflow         from which arguments each value of such a program is computed
estimate         a roofline over both
"""
