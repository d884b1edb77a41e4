/* What the fuzz targets require: a failure ends the process, which the fuzzer then reports. */
#ifndef NUMBERS_URING_TESTS_CHECK_H
#define NUMBERS_URING_TESTS_CHECK_H

#include <stdio.h>
#include <stdlib.h>

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);                \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

#endif
