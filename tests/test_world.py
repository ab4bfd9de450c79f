"""The embedded world's tokenizer: token numbers are part of a trained model."""

from world import tokenizer


def test_two_tokenizers_give_the_same_numbers():
    """A training that is resumed builds its tokenizer again: its text encoder must find the words where they were."""
    assert tokenizer.build().get_vocab() == tokenizer.build().get_vocab()


def test_every_word_is_one_token():
    tokens = tokenizer.build()
    for word in tokenizer.words():
        assert tokens.tokenize(word) == [f"{word}</w>"]
