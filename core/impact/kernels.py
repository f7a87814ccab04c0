"""The loops a refit spends its time in, compiled: products with sparse difference rows, for many plans at once.

Each function works on the rows `begin..stop` and releases the interpreter lock, so that `core.impact.differences` can give
every core a share. No parallel region of numba's own is used: those may not be entered by two threads of a server at once.
"""

from __future__ import annotations

import numba
import numpy as np

_jit = numba.njit(nogil=True, cache=True, fastmath={"contract", "reassoc", "nsz"})


@_jit
def count_differences(ptr, columns, first, second, counts):  # type: ignore[no-untyped-def]
    """Entries of each row first[i] - second[i] of a CSR matrix whose rows have ascending columns."""
    for i in range(len(first)):
        a, a_stop = ptr[first[i]], ptr[first[i] + 1]
        b, b_stop = ptr[second[i]], ptr[second[i] + 1]
        n = 0
        while a < a_stop and b < b_stop:
            left, right = columns[a], columns[b]
            a += left <= right
            b += right <= left
            n += 1
        counts[i] = n + (a_stop - a) + (b_stop - b)


@_jit
def fill_differences(ptr, columns, values, first, second, order, out_ptr, out_columns, out_values):  # type: ignore[no-untyped-def]
    """Writes the rows first[i] - second[i]; `order` gives each column its new place."""
    zero = values.dtype.type(0)
    for i in range(len(first)):
        a, a_stop = ptr[first[i]], ptr[first[i] + 1]
        b, b_stop = ptr[second[i]], ptr[second[i] + 1]
        at = out_ptr[i]
        while a < a_stop or b < b_stop:
            take_a = a < a_stop and (b >= b_stop or columns[a] <= columns[b])
            take_b = b < b_stop and (a >= a_stop or columns[b] <= columns[a])
            column = columns[a] if take_a else columns[b]
            value = zero
            if take_a:
                value += values[a]
                a += 1
            if take_b:
                value -= values[b]
                b += 1
            out_columns[at] = order[column]
            out_values[at] = value
            at += 1


@_jit
def column_moments(ptr, columns, values, rows, count, total, square):  # type: ignore[no-untyped-def]
    """Adds up, for each column over some rows: entries, values, squares (float64)."""
    for row in rows:
        for t in range(ptr[row], ptr[row + 1]):
            value = np.float64(values[t])
            count[columns[t]] += 1
            total[columns[t]] += value
            square[columns[t]] += value * value


@_jit
def _add_row(ptr, columns, values, vectors, i, row):  # type: ignore[no-untyped-def]
    """row += row i of the matrix times `vectors`; four entries at a time, so that `row` is read and written less often."""
    width = vectors.shape[1]
    begin, stop = ptr[i], ptr[i + 1]
    fours = begin + (stop - begin) // 4 * 4
    for t in range(begin, fours, 4):
        a, b, c, d = values[t], values[t + 1], values[t + 2], values[t + 3]
        of_a, of_b = vectors[columns[t]], vectors[columns[t + 1]]
        of_c, of_d = vectors[columns[t + 2]], vectors[columns[t + 3]]
        for p in range(width):
            row[p] += a * of_a[p] + b * of_b[p] + c * of_c[p] + d * of_d[p]
    for t in range(fours, stop):
        value, of_value = values[t], vectors[columns[t]]
        for p in range(width):
            row[p] += value * of_value[p]


@_jit
def row_products(ptr, columns, values, vectors, out, begin, stop):  # type: ignore[no-untyped-def]
    """out[i] = row i times `vectors` [m, plans]."""
    for i in range(begin, stop):
        out[i, :] = 0.0
        _add_row(ptr, columns, values, vectors, i, out[i])


@_jit
def row_product(ptr, columns, values, vector, out, begin, stop):  # type: ignore[no-untyped-def]
    """`row_products` of a single vector [m]: several times as fast as a block of one."""
    for i in range(begin, stop):
        product = vector.dtype.type(0)
        for t in range(ptr[i], ptr[i + 1]):
            product += values[t] * vector[columns[t]]
        out[i] = product


@_jit
def transposed_products(ptr, columns, values, factors, out, begin, stop):  # type: ignore[no-untyped-def]
    """out [m, plans] += transposed rows times `factors` [n, plans]."""
    width = factors.shape[1]
    for i in range(begin, stop):
        factor = factors[i]
        for t in range(ptr[i], ptr[i + 1]):
            value, row = values[t], out[columns[t]]
            for p in range(width):
                row[p] += value * factor[p]


@_jit
def transposed_product(ptr, columns, values, factors, out, begin, stop):  # type: ignore[no-untyped-def]
    """`transposed_products` of a single vector [n]."""
    for i in range(begin, stop):
        factor = factors[i]
        for t in range(ptr[i], ptr[i + 1]):
            out[columns[t]] += values[t] * factor


@_jit
def hessian_products(ptr, columns, values, curvature, vectors, out, begin, stop):  # type: ignore[no-untyped-def]
    """out [m, plans] += D' (curvature * (D vectors)): both products while a row of D is still in the cache."""
    width = vectors.shape[1]
    row = np.empty(width, vectors.dtype)
    for i in range(begin, stop):
        row[:] = 0.0
        _add_row(ptr, columns, values, vectors, i, row)
        for p in range(width):
            row[p] *= curvature[i, p]
        for t in range(ptr[i], ptr[i + 1]):
            value, target = values[t], out[columns[t]]
            for p in range(width):
                target[p] += value * row[p]


@_jit
def hessian_product(ptr, columns, values, curvature, vector, out, begin, stop):  # type: ignore[no-untyped-def]
    """`hessian_products` of a single plan (arrays [n], [m], [m])."""
    for i in range(begin, stop):
        product = vector.dtype.type(0)
        for t in range(ptr[i], ptr[i + 1]):
            product += values[t] * vector[columns[t]]
        product *= curvature[i]
        for t in range(ptr[i], ptr[i + 1]):
            out[columns[t]] += values[t] * product
