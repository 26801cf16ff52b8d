"""Iterative DPO: rounds of sampling, labelling, training and evaluation, each from the policy of the one before."""
