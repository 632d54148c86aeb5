"""From a wave to the patches of MuLaN's audio tower (Gong et al. 2021): framing, window, DFT, power, crop and patch layout in one pass.

    X[k, f] = sum_n w[n] x(f hop + n - before) exp(-2 pi i k (left + n) / n_fft),     p[r, c, k, f] = |X[r bins + k, c frames + f]|^2

n runs over the window's win_length samples, which lie `left` from the beginning of a frame of n_fft; a wave is reflected at both ends. What
does not fill a patch is cropped. A log-mel spectrogram has bands in place of bins, log(max(sum_k M[band, k] |X[k, f]|^2, FLOOR)), in the
same pass. For other settings of MuLaN, such as another exponent, there is its graph.
"""
