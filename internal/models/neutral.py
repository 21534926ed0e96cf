"""Takes out of a vector what tells only its language, so that a search over both languages is one search.

Vectors of one language lie together: beside Chinese passages on other subjects an English one is hardly found by a
Chinese question (nDCG@10 .01 over the two corpora of xquad together, .24 with tokens compared). Centred, and without
the direction in which the languages' means differ, it is found (.42, .49). Libovicky et al. (How Language-Neutral is
Multilingual BERT?, 2019) take out each language's mean, which asks for the language of each text. Within one language
the order hardly changes.

For what is stored and searched. Whoever compares sentences with one another has the model's own vectors, whose
thresholds were measured with them.
"""

import base64

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

# As tests/bench/token_centre.py computes them from this product's own pages.
CENTRE = np.frombuffer(
    base64.b64decode(
        "XCgpqDapg6hvLHqnviVQJussp6QsJ+YgBixNpRCreSu7KnWiiqSdqXomrSOKqaEndix2K5yo3CZOK8Cso6mep8Qo5qwEK5Yn96n5"
        "qlcq06z5ojMmsikFLIAmJCnbp8Anl6lmqB+mwCrvIesmPiXSq0Cs2KycrF4p9yrep3YlwCavLv8rFCkOKeWroqV3qDYrDB6GqfUe"
        "0iMAKM2o+SYOq/2qTamIp2glpKndK1Mqt6u4LH2m3ivOKISnaau8rKasyKjQKhQrxaQjLMWoxSnLrCWqFSuDJ6asxygCrCKs7Sht"
        "LC0qYqtzqZ2kGqw/KHiqviRxp1WrXaqyq86p2SiYKSqgNh80JJ4nsSFAKywpbS1ZqjsoG6YCp6ip9SolqF0q6ispKScsrqkALC2s"
        "pCnwqIYt/ibCKJepIarDqrQpNCzeqoaqqqxan1Ksv6XlJIEsn6nBqIqnJCv+qNUpaRD3KT2nQCFCLRwsSqU8o1GqT6prqf6pYKcp"
        "JtMmW52WqO4qP6gRqv2rOyS9qUsr3ChpKqygi6XUJ/0ntyh0pGysSSsAqvkoMykBrEisjytkqUGnrxzjKkuo4SnnKc6iCibyrTKs"
        "ZykyKsGrIKpCKuKpMahJqvOs06iOrTedyCrHKCqswqTuqd8m8ateLC6qm6etJ42c5CptKB+s36opqYKoEizSKr0tyKoMKUIg56UJ"
        "Lowo8inyIC2r2afcq5imVqkhJEcpGKtIqpao2Ch/LYmokaeoKSkimCk4KzErG6Orploqg6jsqHyin6k/Kdeq0iyfJuWZOyxhqtwp"
        "daNZqKgp/CaXrsUoByYqIQMoOya4LdUqfqikqHslJyy8lnIk1qpVqmeoX6upoECrOyl1KsaqZKjvKu0hNCWAps6mLCh+rACnt6ZQ"
        "KsWrvqzXJxQqWqlsKTKmCqziJnCle6UlKIAqD63tJTwqCqkELNSpfKo5K4Ur7arqqH4pGChsLPkoqaHVJREmWqzcLLMohanWogao"
        "van7qEcqCquRqkIpaCy1KSAr"
    ),
    "<f2",
).astype(np.float32)
"""The mean of the languages' mean vectors."""
DIRECTION = np.frombuffer(
    base64.b64decode(
        "qKq6puKo3aYerIWiWJ1NqI+YeSpUoHAqToinpjAtwSjMp4CZnSJkoQUp6ZtBKCYq+6wrLI6ZjqvGqNin9ahlqZ8V/RxQrTuiZA8Q"
        "pEckECNSqIwmRKp7ri4oEaOyqpujYi3FoOGseCZooEQl5i1aKW2tnB9sLH2qVKlOsBSkfSHamiMts5nTKHOso6R7rBaiU5w5HIOp"
        "xCw1qguthKtNJ4csZiNBp/gopxi/JKyUKKmVHkeucigbnkaswKU2oZScqao2Eqgfjq33ncgrMDF6LaIqt6hGoumTLy2dl8QmmaWX"
        "KSumCy2uF6Sq1CzErbMsrC0dKkOS5az5HQguD6YWLgEym59SotumQS3fKLsiMBwNKXWrIyRKIo6svig4KQmftixqpJGgkyRXLJMa"
        "4CwBHwqnjKX1qPoh56/WpeGilae3KGUoXKKgLQIqgyt5oUGmwywHq2euJ67ing4k/Z6NqdiocyQorLaqOqyhJSkjqakqLS+sKKPg"
        "HhgeYqsSESupLyiMpeqofyfdKX6kryrkn6CmmCmHFLIsj6x3LK4pNSv2KrMi/ivLpyAkcJzULjWshxCEKdii3p0yKP0a5yo4nyqv"
        "MqziLFmpKyANKccmgxuFI4YdDSpSMLurGKB4rA4ua6wKK3YtoJ3QqhEoqSO+pKQpiasDpFUq5KHBK5ujQynqHiGqeijroTWosaUu"
        "p0+oraw5Lr4q7aapHi+nU62SJv+sMqiurBaq963gq24lHKGAqBSm5qAOJXqnTyy5J+sdCiAmqGEscq8eJZMkXyjYJs8d9icWLail"
        "ABqnrzaiNy+7LFKseyeZK0QTLaynqmCoWANFqLsuritsrkEpFCj2q3Ye2KlHLMwpIKzOISGisqTdrZOtKSsFncAdViTQrYgtHTAc"
        "o/ahc6gIpkOvw6zlqfednSL6K+yQrqXLom4wdR+9q1+nr6A2IHuhDiV6pQmmsiajKRmkwyQXqEouQamTIkshmSsqqMwgLinDIQue"
        "T50sLWYt+qjFpjKZBJ0mq8sn"
    ),
    "<f2",
).astype(np.float32)
"""From the Chinese mean to the English one, of unit length."""


def without_language(values: Floats, centre: Floats, direction: Floats) -> Floats:
    """`values`, of shape (…, dim), around `centre` and without their part along `direction`, a unit vector."""
    centred = values - centre
    return centred - np.multiply.outer(centred @ direction, direction)


def neutral(vector: Floats) -> Floats:
    """A unit vector of shape (384,), made of one."""
    rest = without_language(vector, CENTRE, DIRECTION)
    return rest / max(np.float32(np.linalg.norm(rest)), np.float32(1e-6))
