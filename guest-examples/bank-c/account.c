// The aggregate `account` as a program: one document on stdin, one on stdout.
#include "json.h"

typedef struct {
    enum { NEW, OPEN, CLOSED } status;
    int64_t balance;
} account;

static account state_of(slice state) {
    slice status = json_field(state, "status");
    return (account){
        .status = json_is(status, "open") ? OPEN : json_is(status, "closed") ? CLOSED : NEW,
        .balance = json_integer(json_field(state, "balance")),
    };
}

static void apply(account *account, slice event) {
    slice type = json_field(event, "type");
    int64_t amount = json_integer(json_field(json_field(event, "data"), "amount"));
    if (json_is(type, "Opened")) account->status = OPEN;
    else if (json_is(type, "Deposited")) account->balance += amount;
    else if (json_is(type, "Withdrawn")) account->balance -= amount;
    else if (json_is(type, "Closed")) account->status = CLOSED;
    else {
        fprintf(stderr, "unheard of: %.*s\n", SHOWN(type));
        exit(1);
    }
}

static void happened(const char *type, slice data) {
    printf("{\"events\": [{\"type\": \"%s\", \"data\": %.*s}]}\n", type, SHOWN(data));
}

static void refuse(const char *code, const char *message) {
    printf("{\"refusal\": {\"code\": \"%s\", \"message\": \"%s\"}}\n", code, message);
}

static bool is_blank(slice text) {
    for (const char *at = text.at + 1; at < text.end - 1; at++) {
        if (*at != ' ') return false;
    }
    return true;
}

static void decide(const account *account, slice command) {
    slice name = json_field(command, "name"), data = json_field(command, "data");
    int64_t balance = account->balance, amount = json_integer(json_field(data, "amount"));
    if (json_is(name, "open") && account->status == OPEN) {
        refuse("already_open", "the account is open already");
    } else if (account->status == CLOSED) {
        refuse("closed", "the account is closed");
    } else if (json_is(name, "open")) {
        if (is_blank(json_field(data, "owner"))) refuse("owner_missing", "an account needs an owner");
        else happened("Opened", data);
    } else if (account->status == NEW) {
        refuse("not_open", "the account was never opened");
    } else if (json_is(name, "deposit")) {
        if (amount <= INT64_MAX - balance) happened("Deposited", data);
        else
            printf("{\"refusal\": {\"code\": \"account_full\", \"message\": \"the account can't hold that much\","
                   " \"details\": {\"balance\": %lld, \"amount\": %lld}}}\n",
                   (long long)balance, (long long)amount);
    } else if (json_is(name, "withdraw")) {
        long long short_by = amount - balance;
        if (short_by <= 0) happened("Withdrawn", data);
        else
            printf("{\"refusal\": {\"code\": \"insufficient_funds\", \"message\": \"%lld cents short of %lld\","
                   " \"details\": {\"balance\": %lld, \"amount\": %lld, \"short_by\": %lld}}}\n",
                   short_by, (long long)amount, (long long)balance, (long long)amount, short_by);
    } else if (json_is(name, "close")) {
        if (balance == 0) happened("Closed", data);
        else
            printf("{\"refusal\": {\"code\": \"account_not_empty\", \"message\": \"the account still holds %lld cents\","
                   " \"details\": {\"balance\": %lld}}}\n",
                   (long long)balance, (long long)balance);
    } else {
        fprintf(stderr, "unheard of: %.*s\n", SHOWN(name));
        exit(1);
    }
}

int main(void) {
    slice input = read_input();
    account account = state_of(json_field(input, "state"));
    slice events = json_inside(json_field(input, "events"));
    for (slice event = json_next(&events); json_is_there(event); event = json_next(&events)) {
        apply(&account, event);
    }
    if (json_is(json_field(input, "kind"), "decide")) {
        decide(&account, json_field(input, "command"));
    } else {
        static const char *const status[] = {"new", "open", "closed"};
        printf("{\"state\": {\"status\": \"%s\", \"balance\": %lld}}\n", status[account.status],
               (long long)account.balance);
    }
    return 0;
}
