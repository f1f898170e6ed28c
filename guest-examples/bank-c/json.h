// Just enough JSON for a program: what the platform writes is valid, so values can be found where they stand, as slices
// of the text, and nothing needs to be allocated.
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// A part of a text.
typedef struct {
    const char *at;
    const char *end;
} slice;

static inline const char *json_space(const char *at, const char *end) {
    while (at < end && strchr(" \t\r\n,:", *at) != NULL) at++;
    return at;
}

// The value that begins here: brackets are counted, and those in strings are none.
static inline slice json_value(const char *at, const char *end) {
    at = json_space(at, end);
    const char *from = at;
    int depth = 0;
    bool quoted = false;
    for (; at < end; at++) {
        if (quoted) {
            if (*at == '\\') at++;
            else if (*at == '"') quoted = false;
        } else if (*at == '"') {
            quoted = true;
        } else if (*at == '{' || *at == '[') {
            depth++;
            continue;
        } else if (*at == '}' || *at == ']') {
            if (depth == 0) break; // of what this value stands in
            depth--;
        } else if (depth == 0 && strchr(" \t\r\n,:", *at) != NULL) {
            break;
        }
        if (depth == 0 && !quoted && (*at == '"' || *at == '}' || *at == ']')) {
            at++;
            break;
        }
    }
    return (slice){from, at};
}

// What is in an array or object, for json_next; nothing if it is neither.
static inline slice json_inside(slice value) {
    bool has_inside = value.at < value.end && (*value.at == '[' || *value.at == '{');
    return has_inside ? (slice){value.at + 1, value.end - 1} : (slice){0};
}

// The next element of an array, or the next name or value of an object; empty at the end.
static inline slice json_next(slice *rest) {
    slice value = json_value(rest->at, rest->end);
    rest->at = value.end;
    return value;
}

static inline bool json_is_there(slice value) {
    return value.at < value.end;
}

// Whether it is this string, which has nothing to escape.
static inline bool json_is(slice value, const char *text) {
    size_t length = strlen(text);
    return (size_t)(value.end - value.at) == length + 2 && memcmp(value.at + 1, text, length) == 0;
}

// A field of an object; empty if there is none.
static inline slice json_field(slice object, const char *name) {
    slice rest = json_inside(object);
    for (slice key = json_next(&rest); json_is_there(key); key = json_next(&rest)) {
        slice value = json_next(&rest);
        if (json_is(key, name)) return value;
    }
    return (slice){0};
}

static inline int64_t json_integer(slice value) {
    return json_is_there(value) ? strtoll(value.at, NULL, 10) : 0;
}

// All of stdin.
static inline slice read_input(void) {
    size_t length = 0, room = 1 << 16;
    char *text = malloc(room);
    for (size_t got; text != NULL && (got = fread(text + length, 1, room - length, stdin)) > 0;) {
        length += got;
        if (length == room) text = realloc(text, room *= 2);
    }
    if (text == NULL) {
        fputs("there is no memory for the input\n", stderr);
        exit(1);
    }
    return json_value(text, text + length);
}

// A slice as an argument of "%.*s".
#define SHOWN(value) (int)((value).end - (value).at), (value).at
