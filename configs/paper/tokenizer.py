"""The VQ-GAN tokenizer at the paper's scale: 256 pixels, f=16, 8192 codes.

    synth2 train --config=configs/paper/tokenizer.py --workdir=WORKDIR/tokenizer \\
        --config.pretrained.perceptual=vgg16.safetensors \\
        --config.data.modules=MODULE --config.data.mixture=MIXTURE

MODULE registers a SeqIO mixture of 256-pixel images. docs/your_data.md says how to make
vgg16.safetensors.

Hardware: 64 TPU v5e chips or more.
Time: not run at this size; `synth2 plan` estimates it.
Score: not run at this size.

From MaskGIT's code: 128 filters times 1-1-2-2-4, 2 residual blocks a level, codes of 256 values,
commitment 0.25, entropy 0.1 at temperature 0.01, perceptual 0.1, adversarial 0.1 (non-saturating),
R1 10, betas 0 and 0.99, and the moving average of 0.999 that it evaluates with. From Muse: 8192
codes, f=16. MaskGIT's pixels are in [0, 1], ours in [-1, 1]: its weights of reconstruction and R1,
1 and 10, are 0.25 and 40 here.

Left open by the paper, and chosen:
- learning rate 1e-4, batch 256, 500,000 steps
- the discriminator joins at step 50,000
- gradients of tokenizer and discriminator are clipped to a norm of 1, each alone
- VGG-16's features for the perceptual loss
"""

import ml_collections

from configs.paper import models


def get_config() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "model_name": "tokenizer",
            "model": {
                "tokenizer": models.tokenizer(),
                "loss": {
                    "reconstruction": "l2",
                    "reconstruction_weight": 0.25,
                    "commitment_weight": 0.25,
                    "entropy_weight": 0.1,
                    "entropy_temperature": 0.01,
                    "perceptual_weight": 0.1,
                    "adversarial_weight": 0.1,
                    "adversarial_start": 50_000,
                    "r1_weight": 40.0,
                },
                "discriminator": {"image_size": 256, "dtype": "bfloat16"},
                "perceptual": {"dtype": "bfloat16"},
            },
            "pretrained": {"perceptual": ""},
            "data": {"mixture": "", "split": "train", "batch_size": 256},
            "optimizer": {
                "name": "adam",
                "learning_rate": 1e-4,
                "schedule": "constant",
                "warmup_steps": 5000,
                "beta1": 0.0,
                "beta2": 0.99,
            },
            "train": {**models.train(500_000), "ema_decay": 0.999},
            "mesh": {"data": -1, "fsdp": 1},
        }
    )
