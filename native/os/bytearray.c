/* The one call of Python's C interface: what it has no name for in Python before 3.14.
 *
 * pyconfig.h alone tells a free-threaded Python, which has no limited interface. */
#include <pyconfig.h>
#if !defined(Py_LIMITED_API) && !defined(Py_GIL_DISABLED)
#define Py_LIMITED_API 0x030b0000
#endif
#include <Python.h>

#include "os/memory.h"

#include <errno.h>

int nu_bytearray_resize(void *bytearray, size_t bytes) {
    if (bytes > PY_SSIZE_T_MAX)
        return -ENOMEM;
    PyGILState_STATE state = PyGILState_Ensure();
    int status = PyByteArray_Resize(bytearray, (Py_ssize_t)bytes);
    if (status)
        PyErr_Clear();
    PyGILState_Release(state);
    return status ? -ENOMEM : 0;
}
