#include "greet.h"

#include <stdio.h>
#include <string.h>

static int failures;

static void check(const char *name, size_t size, const char *expected, int length)
{
    char text[100];
    int found = greet(text, size, name);
    if (found != length || strcmp(text, expected) != 0) {
        printf("greet(%s, %zu): expected %s (%d), found %s (%d)\n", name, size, expected, length, text, found);
        failures++;
    }
}

int main(void)
{
    check("world", 100, "Hello, world!", 13);
    check("", 100, "Hello, !", 8);
    check("world", 6, "Hello", 13);
    printf("%d failures\n", failures);
    return failures != 0;
}
