// The projection `balances` as a program: events on stdin, changes to rows on stdout.
#include "json.h"

int main(void) {
    slice input = read_input();
    slice events = json_inside(json_field(input, "events"));
    slice unknown = {0};
    const char *between = "";
    int index = 0;
    fputs("{\"rows\": [", stdout);
    for (slice event = json_next(&events); json_is_there(event); event = json_next(&events), index++) {
        slice type = json_field(event, "type"), data = json_field(event, "data");
        slice stream = json_field(event, "subject"); // "account-1", with its quotes
        slice key = {stream.at + strlen("\"account-"), stream.end - 1};
        slice amount = json_field(data, "amount");
        bool is_known = json_is(type, "Opened") || json_is(type, "Deposited") || json_is(type, "Withdrawn") ||
                        json_is(type, "Closed");
        if (!is_known) {
            unknown = type;
            break;
        }
        printf("%s{\"model\": \"balances\", \"key\": \"%.*s\", ", between, SHOWN(key));
        if (json_is(type, "Opened")) {
            printf("\"put\": {\"owner\": %.*s, \"balance\": 0}}", SHOWN(json_field(data, "owner")));
        } else if (json_is(type, "Closed")) {
            fputs("\"delete\": true}", stdout);
        } else {
            printf("\"add\": {\"balance\": %s%.*s}}", json_is(type, "Withdrawn") ? "-" : "", SHOWN(amount));
        }
        between = ", ";
    }
    fputs("]", stdout);
    if (json_is_there(unknown)) { // what came before it is kept
        slice name = {unknown.at + 1, unknown.end - 1};
        printf(", \"failure\": {\"index\": %d, \"message\": \"unheard of: %.*s\"}", index, SHOWN(name));
    }
    fputs("}\n", stdout);
    return 0;
}
