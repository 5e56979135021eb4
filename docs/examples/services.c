/* A stack to test: lwIP on a TAP device, with four services and no agent.
 * cc services.c -o services $(pkg-config --cflags --libs lwip) -lpthread
 * PRECONFIGURED_TAPIF=tap0 ./services 192.0.2.1 255.255.255.0 192.0.2.2 */
#include <lwip/init.h>
#include <lwip/sockets.h>
#include <lwip/tcpip.h>
#include <netif/tapif.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static struct netif netif;

enum what { ECHO = 7, DISCARD = 9, CLOSE = 10, HOLD = 11 };

struct connection {
    int socket;
    enum what what;
};

static void serve(void *argument)
{
    struct connection *connection = argument;
    char octets[2048];
    int size;
    while ((size = lwip_recv(connection->socket, octets, sizeof octets, 0)) > 0) {
        if (connection->what == ECHO)
            lwip_send(connection->socket, octets, size, 0);
        if (connection->what == CLOSE)
            break;
    }
    if (connection->what != HOLD)
        lwip_close(connection->socket);
    mem_free(connection);
}

static int listen_on(enum what what)
{
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = lwip_htons(what)};
    int listener = lwip_socket(AF_INET, SOCK_STREAM, 0);
    lwip_bind(listener, (struct sockaddr *)&any, sizeof any);
    lwip_listen(listener, 16);
    return listener;
}

static void accept_all(void *argument)
{
    struct connection *listener = argument;
    for (;;) {
        struct connection *connection = mem_malloc(sizeof *connection);
        connection->what = listener->what;
        connection->socket = lwip_accept(listener->socket, NULL, NULL);
        sys_thread_new("serve", serve, connection, 0, 0);
    }
}

static void up(void *arguments)
{
    char **address = arguments;
    ip4_addr_t own, mask, gateway;
    ip4addr_aton(address[1], &own);
    ip4addr_aton(address[2], &mask);
    ip4addr_aton(address[3], &gateway);
    netif_add(&netif, &own, &mask, &gateway, NULL, tapif_init, tcpip_input);
    netif_set_default(&netif);
    netif_set_up(&netif);
    netif_set_link_up(&netif);
}

int main(int count, char **arguments)
{
    static struct connection all[] = {{.what = ECHO}, {.what = DISCARD}, {.what = CLOSE}, {.what = HOLD}};
    if (count != 4)
        return fprintf(stderr, "services ADDRESS NETMASK GATEWAY\n"), 2;
    tcpip_init(up, arguments);
    for (unsigned i = 0; i < sizeof all / sizeof *all; i++) {
        all[i].socket = listen_on(all[i].what);
        sys_thread_new("accept", accept_all, &all[i], 0, 0);
    }
    fprintf(stderr, "ready\n"); /* all of them listen: a client that is too early would be reset */
    for (;;)
        pause();
}
