"""Estimates of a config on a pod, made without a pod.

chips            the chips that can be compiled for, and what they can do
topologies       devices of such chips, for a mesh
model_flops      FLOPs of a training step, of sampling, captions and tokenizing, by formula
hlo              what a compiled program computes and moves, loops counted in full
hlo_bytes        what its instructions read from memory and write to it
hlo_collectives  what its chips send to each other, and whether they compute meanwhile
hlo_groups       which of them do
hlo_text         its instructions, as text
dataflow         from which arguments each value of such a program is computed
network          how long the chips take to send it
schedule         how long the program takes, what overlaps and what does not
estimate         that, beside the least time that it could take
"""
