#ifndef GREET_H
#define GREET_H

#include <stddef.h>

/* Writes a greeting of at most size - 1 characters. Returns its full length, as snprintf does. */
int greet(char *out, size_t size, const char *name);

#endif
