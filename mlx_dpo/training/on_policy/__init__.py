"""Training on the policy's own answers: sample, judge, and make examples of them, batch by batch."""
