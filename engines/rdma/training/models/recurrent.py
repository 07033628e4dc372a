"""Recurrent networks: language models, translation, sentence embedding."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn


class LanguageModel(nn.Module):
    """Predicts the next word with stacked recurrent layers.

    With LSTM cells the *medium* model of Zaremba, Sutskever and Vinyals 2014 ("Recurrent neural network
    regularization"): 10,000 words, two layers of 650 units, 35 steps. With GRU cells (Cho et al. 2014, "Learning
    phrase representations using RNN encoder-decoder ...") the same shape. Xue et al. 2018 name an LSTM and a GRU
    without their dimensions where we could read them, so this choice is ours. Dropout is left out, as in `AlexNet`.
    """

    def __init__(
        self, cell: Literal["lstm", "gru"], *, vocabulary: int = 10_000, width: int = 650, layers: int = 2
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.layers = {"lstm": nn.LSTM, "gru": nn.GRU}[cell](width, width, layers, batch_first=True)
        self.projection = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Scores (samples, length, vocabulary) of the words that follow."""
        states, _ = self.layers(self.embedding(tokens))
        scores: Tensor = self.projection(states)
        return scores


class Seq2Seq(nn.Module):
    """A translation model of the LSTM years: embeddings, encoder, decoder, attention, projection.

    Shaped after Luong, Pham and Manning 2015 ("Effective approaches to attention-based neural machine translation":
    global attention, input feeding), at half their width; it is no published model, which is why its definition stands
    here in full.
    """

    def __init__(self, *, vocabulary: int = 32_000, width: int = 512, layers: int = 2) -> None:
        super().__init__()
        self.source_embedding = nn.Embedding(vocabulary, width)
        self.target_embedding = nn.Embedding(vocabulary, width)
        self.encoder = nn.LSTM(width, width, layers, batch_first=True, bidirectional=True)
        self.bridge = nn.Linear(2 * width, width)
        self.decoder = nn.LSTM(2 * width, width, layers, batch_first=True)
        self.attention = nn.Linear(2 * width, width, bias=False)
        self.combine = nn.Linear(3 * width, width, bias=False)
        self.projection = nn.Linear(width, vocabulary)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Scores (samples, target length, vocabulary), given each target word's predecessor in `target`."""
        memory, (hidden, cell) = self.encoder(self.source_embedding(source))
        state = tuple(torch.tanh(self.bridge(_both_directions(last))) for last in (hidden, cell))
        keys = self.attention(memory)
        # Input feeding: a step sees what the attention of the step before it found, so steps follow one another.
        found = memory.new_zeros(len(source), self.combine.out_features)
        steps = []
        for word in self.target_embedding(target).unbind(1):
            output, state = self.decoder(torch.cat((word, found), dim=1)[:, None], state)
            weights = torch.softmax(output @ keys.transpose(1, 2), dim=2)
            context = (weights @ memory)[:, 0]
            found = torch.tanh(self.combine(torch.cat((context, output[:, 0]), dim=1)))
            steps.append(found)
        scores: Tensor = self.projection(torch.stack(steps, dim=1))
        return scores


def _both_directions(last: Tensor) -> Tensor:
    """(layers * 2, samples, width), directions taking turns, to (layers, samples, 2 * width)."""
    return torch.cat((last[0::2], last[1::2]), dim=2)


class SentenceEncoder(nn.Module):
    """Compares two sentences by their embeddings.

    Conneau, Kiela, Schwenk, Barrault and Bordes 2017 ("Supervised learning of universal sentence representations ..."):
    a bidirectional LSTM, the maximum over time, then a classifier over (u, v, |u - v|, u * v). Their LSTM has 2048
    units, their classifier 512; word vectors of 300 dimensions are learnt here, where theirs were given. That the
    paper's "sentence embedding" was this network is our choice, not its word.
    """

    def __init__(
        self, *, vocabulary: int = 20_000, embedding: int = 300, width: int = 2048, hidden: int = 512, classes: int = 2
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.encoder = nn.LSTM(embedding, width, batch_first=True, bidirectional=True)
        self.classifier = nn.Sequential(nn.Linear(8 * width, hidden), nn.Tanh(), nn.Linear(hidden, classes))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Scores (samples, classes) of pairs of sentences (samples, length)."""
        u, v = self._embed(first), self._embed(second)
        scores: Tensor = self.classifier(torch.cat((u, v, (u - v).abs(), u * v), dim=1))
        return scores

    def _embed(self, sentence: Tensor) -> Tensor:
        states, _ = self.encoder(self.embedding(sentence))
        return states.amax(dim=1)
