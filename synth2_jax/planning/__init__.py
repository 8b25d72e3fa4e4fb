"""What a pod would make of a config, found out without one.

topologies   the pods that the TPU compiler can compile for, and what their chips can do
model_flops  FLOPs of a training step or of sampling, by formula
hlo          what a compiled program computes and communicates, loops counted in full
dataflow     from which arguments each value of such a program is computed
estimate     a roofline over both
"""
