"""Models whose definition is a configuration of the `transformers` library; no weights are downloaded.

Dropout is off: its masks would depend on how a batch is shared among workers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def bert(**options: int) -> nn.Module:
    """BERT-base, uncased (Devlin, Chang, Lee and Toutanova 2019), with a head for two classes.

    The default configuration is the paper's; its encoder (`.bert`) has 109,482,240 parameters.
    """
    from transformers import BertConfig, BertForSequenceClassification

    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForSequenceClassification(BertConfig(**dropout, num_labels=2, **options))


def gpt2(**options: int) -> nn.Module:
    """GPT-2 small (Radford, Wu, Child, Luan, Amodei and Sutskever 2019); the output layer shares the embedding."""
    from transformers import GPT2Config, GPT2LMHeadModel

    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(**dropout, use_cache=False, **options))


def resnet(*, classes: int = 1000, **options: object) -> nn.Module:
    """ResNet-50 (He, Zhang, Ren and Sun 2016): the default configuration."""
    from transformers import ResNetConfig, ResNetForImageClassification

    return ResNetForImageClassification(ResNetConfig.from_dict({"num_labels": classes, **options}))
