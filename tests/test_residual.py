"""The residual codec: what it loses, what it takes, and that packing loses nothing."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from rerank_lab.core import DataError, InputError
from rerank_lab.rerankers.residual import BITS, ResidualCodec, centroid_count, pack, unpack


def unit_vectors(n=2000, d=16, seed=0, groups=20):
    """Unit vectors around a few directions, as token vectors are."""
    generator = torch.Generator().manual_seed(seed)
    middles = torch.randn(groups, d, generator=generator)
    return F.normalize(middles[torch.arange(n) % groups] + 0.5 * torch.randn(n, d, generator=generator), dim=-1)


@given(bits=st.sampled_from(BITS), rows=st.integers(0, 5), width=st.integers(1, 4), seed=st.integers(0, 1000))
def test_packing_and_unpacking_gives_the_numbers_back(bits, rows, width, seed):
    numbers = np.random.default_rng(seed).integers(0, 1 << bits, (rows, 8 * width), dtype=np.uint8)
    packed = pack(numbers, bits)
    assert (packed.dtype, packed.shape) == (np.uint8, (rows, width * bits))
    np.testing.assert_array_equal(unpack(packed, bits), numbers)


def test_one_bit_is_packed_as_numpy_packs_it():
    numbers = np.random.default_rng(0).integers(0, 2, (7, 24), dtype=np.uint8)
    np.testing.assert_array_equal(pack(numbers, 1), np.packbits(numbers, axis=1))


@pytest.mark.parametrize("bits", BITS)
def test_vectors_come_back_with_length_one_and_nearer_than_their_centroid(bits):
    vectors = unit_vectors()
    codec = ResidualCodec.train(vectors, bits)
    codes, packed = codec.compress(vectors)
    back = codec.decompress(codes, packed)
    torch.testing.assert_close(back.norm(dim=-1), torch.ones(len(vectors)))
    alone = codec.centroids[torch.from_numpy(codes.astype(np.int64))]
    assert (back * vectors).sum(-1).mean() > (alone * vectors).sum(-1).mean()


def test_the_error_falls_with_the_bits():
    vectors = unit_vectors()
    errors = []
    for bits in BITS:
        codec = ResidualCodec.train(vectors, bits)
        errors.append(float((codec.decompress(*codec.compress(vectors)) - vectors).norm(dim=-1).mean()))
    assert errors[0] > 1.3 * errors[1] > 1.3 * 1.3 * errors[2]
    assert errors[2] < 0.15


@pytest.mark.parametrize("bits", BITS)
def test_the_size_is_what_it_says(bits):
    codec = ResidualCodec.train(unit_vectors(), bits)
    codes, packed = codec.compress(unit_vectors(n=10, seed=1))
    assert (codes.dtype, packed.shape) == (np.uint16, (10, 2 * bits))
    assert codec.bytes_per_vector == 2 + 2 * bits == (codes.nbytes + packed.nbytes) / 10


def test_codes_are_the_nearest_centroids_and_buckets_lie_between_the_cutoffs():
    vectors = unit_vectors()
    codec = ResidualCodec.train(vectors, 2)
    codes, packed = codec.compress(vectors)
    np.testing.assert_array_equal(codes, (vectors @ codec.centroids.T).argmax(1).numpy())
    residuals = vectors - codec.centroids[torch.from_numpy(codes.astype(np.int64))]
    buckets = unpack(packed, 2)
    low = np.r_[-np.inf, codec.cutoffs.numpy()][buckets]
    high = np.r_[codec.cutoffs.numpy(), np.inf][buckets]
    assert ((low <= residuals.numpy()) & (residuals.numpy() <= high)).all()
    assert (codec.weights[:-1] < codec.cutoffs).all() and (codec.cutoffs < codec.weights[1:]).all()


def test_buckets_are_about_equally_full_of_vectors_that_were_not_trained_on():
    vectors = unit_vectors(n=8000)
    codec = ResidualCodec.train(vectors[:4000], 2)
    _, packed = codec.compress(vectors[4000:])
    np.testing.assert_allclose(np.bincount(unpack(packed, 2).ravel(), minlength=4) / (4000 * 16), 0.25, atol=0.04)


def test_the_same_seed_gives_the_same_codec_and_another_seed_another():
    vectors = unit_vectors()
    one, same, other = (ResidualCodec.train(vectors, 2, seed=seed) for seed in (3, 3, 4))
    for name in ("centroids", "cutoffs", "weights"):
        assert torch.equal(getattr(one, name), getattr(same, name))
    assert not torch.equal(one.centroids, other.centroids)


def test_a_codec_is_the_same_after_it_was_saved(tmp_path):
    vectors = unit_vectors()
    codec = ResidualCodec.train(vectors, 4)
    codec.save(tmp_path / "codec.safetensors")
    back = ResidualCodec.load(tmp_path / "codec.safetensors")
    assert (back.bits, back.code_type) == (4, np.uint16)
    assert torch.equal(back.centroids, codec.centroids)
    for ours, theirs in zip(codec.compress(vectors), back.compress(vectors), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("content", [None, b"", b"garbage", b"\x02\0\0\0\0\0\0\0{}"])
def test_a_file_that_is_no_codec_is_refused(tmp_path, content):
    file = tmp_path / "codec.safetensors"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=r"is no residual codec .*build the index again"):
        ResidualCodec.load(file)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 40])
def test_a_handful_of_vectors_is_enough_for_a_codec_with_fewer_centroids(n):
    vectors = unit_vectors(n=n)
    codec = ResidualCodec.train(vectors, 2)
    assert len(codec.centroids) == centroid_count(n) <= max(1, n // 2)
    assert torch.isfinite(codec.decompress(*codec.compress(vectors))).all()


def test_vectors_that_are_all_the_same_come_back_as_they_are():
    vectors = unit_vectors(n=1).repeat(100, 1)
    codec = ResidualCodec.train(vectors, 1)
    torch.testing.assert_close(codec.decompress(*codec.compress(vectors)), vectors, atol=2e-3, rtol=0)


def test_more_centroids_than_two_bytes_can_name_get_four():
    centroids = F.normalize(torch.randn((1 << 16) + 1, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    codec = ResidualCodec(centroids, torch.zeros(1), torch.tensor([-0.1, 0.1]))
    codes, _ = codec.compress(centroids[-1:])
    assert (codec.bytes_per_vector, codes.dtype, codes.tolist()) == (5, np.int32, [1 << 16])


def test_no_vectors_compress_to_nothing():
    codec = ResidualCodec.train(unit_vectors(), 2)
    codes, packed = codec.compress(torch.empty(0, 16))
    assert codec.decompress(codes, packed).shape == (0, 16)


@pytest.mark.parametrize("bits", [0, 3, 8])
def test_other_bits_are_refused(bits):
    with pytest.raises(InputError, match=rf"bits is {bits}: give 1, 2 or 4"):
        ResidualCodec.train(unit_vectors(), bits)


@pytest.mark.parametrize(("n", "d", "bits"), [(0, 16, 2), (50, 12, 1), (50, 6, 2)])
def test_vectors_whose_bits_do_not_fill_bytes_are_refused(n, d, bits):
    with pytest.raises(InputError, match=rf"{n} vectors of {d} dimensions with {bits} bits"):
        ResidualCodec.train(unit_vectors(n=n, d=d), bits)
