"""The rules of KVBM's own C code: one place for the language, the warnings and the linking."""

# Warnings are errors under gcc, the compiler of record. clang builds (fuzzing) show theirs without failing.
COPTS = [
    "-std=c11",
    "-D_GNU_SOURCE",
    # Bazel's -c opt defines it; here assertions stay on (design, section 3.8).
    "-UNDEBUG",
    "-Wall",
    "-Wextra",
    "-Wshadow",
    "-Wconversion",
    "-Wmissing-prototypes",
    "-Wvla",
] + select({
    "//runtime/deps:clang": [],
    "//conditions:default": ["-Werror"],
})

LINKOPTS = ["-Wl,--as-needed", "-lpthread"]

def kvbm_library(name, copts = [], linkopts = [], **kwargs):
    """A C library of the tree, linked statically into whatever uses it."""
    native.cc_library(
        name = name,
        copts = COPTS + copts,
        linkopts = linkopts,
        linkstatic = 1,
        **kwargs
    )

def kvbm_binary(name, copts = [], linkopts = [], **kwargs):
    """A C program, or with linkshared a shared library."""
    native.cc_binary(
        name = name,
        copts = COPTS + copts,
        linkopts = LINKOPTS + linkopts,
        **kwargs
    )

def kvbm_tests(deps, size = "medium", **kwargs):
    """One cc_test for each *_test.c of the folder, and a library :support of every other source there."""
    support = native.glob(["*.c"], exclude = ["*_test.c", "*_main.c"], allow_empty = True)
    headers = native.glob(["*.h"], allow_empty = True)
    kvbm_library(
        name = "support",
        testonly = 1,
        srcs = support,
        hdrs = headers,
        visibility = ["//tests:__subpackages__", "//bench:__subpackages__"],
        deps = deps + ["//tests/support", "@check//:check"],
    )
    for source in native.glob(["*_test.c"], allow_empty = True):
        native.cc_test(
            name = source[:-len(".c")],
            size = size,
            srcs = [source],
            copts = COPTS,
            linkopts = LINKOPTS,
            linkstatic = 1,
            deps = deps + [":support", "//tests/support", "@check//:check"],
            **kwargs
        )

def kvbm_programs(pattern, deps, **kwargs):
    """One program for each source that matches the pattern; headers of the folder are theirs."""
    for source in native.glob([pattern], allow_empty = True):
        kvbm_binary(
            name = source[:-len(".c")],
            srcs = [source] + native.glob(["*.h"], allow_empty = True),
            deps = deps,
            **kwargs
        )
