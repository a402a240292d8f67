"""What was trained, loaded to be used: runs, checkpoints, exported folders, Microsoft's releases. No fairseq.

`loading` says what a path is and loads it, `model` is what one gets, `scoring` its pseudo-log-likelihoods; `exported`,
`released` and `layouts` know the formats of others.
"""
