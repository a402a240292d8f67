"""fairseq-train, to which the machine has two GPUs as far as their number goes."""

import fairseq_cli.train
import torch

if __name__ == "__main__":  # and not in the processes that it starts
    torch.cuda.device_count = lambda: 2
    fairseq_cli.train.cli_main()
