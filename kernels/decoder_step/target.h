// The instruction set of what follows in a file, in GCC's and in Clang's words. Headers of the system are included before it, so that no
// function of theirs is compiled for a processor that another form of the code must do without.
#if defined(__clang__)
#define DS_PRAGMA(text) _Pragma(#text)
#define DS_TARGET_BEGIN(set) DS_PRAGMA(clang attribute push(__attribute__((target(set))), apply_to = function))
#define DS_TARGET_END _Pragma("clang attribute pop")
#else
#define DS_PRAGMA(text) _Pragma(#text)
#define DS_TARGET_BEGIN(set) _Pragma("GCC push_options") DS_PRAGMA(GCC target(set))
#define DS_TARGET_END _Pragma("GCC pop_options")
#endif
