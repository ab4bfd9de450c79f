"""The embedded world's tokenizer: token numbers are part of a trained model."""

from world import tokenizer


def test_a_resumed_training_finds_its_words_where_they_were(tmp_path):
    """Ties make BPE training differ from run to run: the tokenizer is kept with the checkpoint."""
    first = tokenizer.load(tmp_path / "tokenizer").get_vocab()
    assert tokenizer.load(tmp_path / "tokenizer").get_vocab() == first


def test_every_word_is_one_token():
    tokens = tokenizer.build()
    for word in tokenizer.words():
        assert tokens.tokenize(word) == [f"{word}</w>"]
